from __future__ import annotations

import pytest
import torch

from qat.errors import ConfigError
from qat.observers import MinMax
from qat.quantizers import DoReFa
from qat.spec import IntSpec

WEIGHT = IntSpec(bits=4, narrow=True, granularity="per_channel")


@pytest.mark.parametrize("spec", [IntSpec(bits=4, signed=False, scheme="affine"), IntSpec(bits=4)])
def test_it_wants_a_mirrored_grid(spec):
    with pytest.raises(ConfigError, match=r"DoReFa puts weights on a mirrored grid, got .*; use scheme: symmetric"):
        DoReFa(spec, MinMax)


def test_weights_keep_their_size():
    w = torch.randn(4, 50) * torch.tensor([[0.01], [0.1], [1.0], [3.0]])
    quantizer = DoReFa(WEIGHT, MinMax, channels=4)
    y = quantizer(w)
    torch.testing.assert_close(y.abs().amax(1), w.abs().amax(1), rtol=1e-6, atol=0)  # qmax * (max / qmax)


def test_the_gradient_is_the_closed_form():
    w = torch.randn(4, 50, requires_grad=True)
    quantizer = DoReFa(WEIGHT, MinMax, channels=4)
    grad = torch.randn(4, 50)
    quantizer(w).backward(grad)
    t = w.detach().tanh()
    size = w.detach().abs().amax(1, keepdim=True)  # s * qmax
    expected = grad * size * (1 - t**2) / t.abs().amax(1, keepdim=True)
    torch.testing.assert_close(w.grad, expected)
