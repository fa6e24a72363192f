from __future__ import annotations

import pytest
import torch

from qat.functional.dorefa import tanh_steps

ROUNDING = 1e-5  # relative, float32 against float64


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_forward_and_gradient_are_the_closed_form(axis):
    w = torch.randn(3, 4, 5)
    w.requires_grad_()
    v = tanh_steps(w, 7, axis)
    grad = torch.randn(3, 4, 5)
    v.backward(grad)
    d = w.detach().double()
    others = [k for k in range(3) if axis is None or k != axis % 3]
    largest = d.tanh().abs().amax(others, keepdim=True)
    torch.testing.assert_close(v.detach().double(), 7 * d.tanh() / largest, rtol=ROUNDING, atol=ROUNDING)
    expected = grad * 7 * (1 - d.tanh() ** 2) / largest
    torch.testing.assert_close(w.grad.double(), expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_largest_weight_lands_on_the_end_of_the_grid():
    v = tanh_steps(torch.tensor([[0.1, -3.0], [1e-3, 1e-4]]), 127, 0)
    assert v[0, 1] == -127.0
    assert v[1, 0] == 127.0


def test_zeros_stay_zeros():
    assert torch.equal(tanh_steps(torch.zeros(2, 3), 7, 0), torch.zeros(2, 3))
    assert torch.equal(tanh_steps(torch.tensor([2.0, 0.0]), 7, 0), torch.tensor([7.0, 0.0]))  # axis 0 of a vector
