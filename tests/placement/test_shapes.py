from __future__ import annotations

import pytest
import torch
from torch import nn

from qat.errors import CaptureError
from qat.placement.capture import capture
from qat.placement.shapes import macs_per_example, propagate_shapes, two_examples


def shapes(model: nn.Module, x: torch.Tensor, **kwargs) -> dict[str, tuple[int, ...]]:
    graph = capture(model, (x,), {}, **kwargs).eval
    propagate_shapes(model, graph, (x,), {})
    return {n.name: tuple(n.meta["val"].shape) for n in graph.nodes if n.op != "output"}


def test_shapes_are_those_of_a_forward_pass():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert shapes(model, torch.zeros(2, 3, 9, 9)) == {
        "input_1": (2, 3, 9, 9),
        "_0": (2, 8, 4, 4),
        "_1": (2, 8, 1, 1),
        "_2": (2, 8),
    }


def test_nothing_moves_in_the_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=None)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shapes(model, torch.randn(2, 3, 4, 4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_leaf_that_looks_at_values_is_run():
    class Looks(nn.Module):
        def forward(self, x):
            return x[:, :1] if x.sum() > 0 else x

    state = torch.random.get_rng_state()
    model = nn.Sequential(nn.BatchNorm2d(3), Looks(), nn.Dropout()).train()
    assert shapes(model, torch.ones(2, 3, 4, 4), leaf_modules=(Looks,))["_1"] in {(2, 1, 4, 4), (2, 3, 4, 4)}
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model[0].num_batches_tracked == 0


def test_rejected_inputs_name_the_shape():
    with pytest.raises(CaptureError, match=r"Sequential rejects example inputs of shape \(2, 4\): .*Pass"):
        shapes(nn.Sequential(nn.Linear(3, 2)), torch.zeros(2, 4))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_two_examples_of_any_batch(size):
    x, mask, table, number = torch.randn(size, 3), torch.randn(size, 1), torch.randn(7, 3), torch.tensor(2.0)
    a, b, c, d, e = two_examples((x, mask, table, number, "text"), "cpu")
    assert a.shape == (2, 3)
    assert b.shape == (2, 1)
    assert torch.equal(a[0], x[0])
    assert torch.equal(c, table)  # no batch dimension of its own
    assert d is not None
    assert torch.equal(d, number)
    assert e == "text"


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 5, 5), 8 * 25 * 27),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5), 8 * 25 * 9),
        (nn.Linear(10, 4), (2, 10), 40),
        (nn.Linear(10, 4), (2, 7, 10), 280),
        (nn.Conv1d(3, 5, 2), (2, 3, 4), 5 * 3 * 6),
    ],
)
def test_multiply_accumulates_of_one_example(layer, shape, macs):
    model = nn.Sequential(layer)
    graph = capture(model, (torch.zeros(shape),), {}).eval
    propagate_shapes(model, graph, (torch.zeros(shape),), {})
    (node,) = (n for n in graph.nodes if n.op == "call_module")
    assert macs_per_example(node, layer) == macs
