from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from qat.placement.fake import Shapes, methodcaller


class Counting:
    """A function of torch's, by name, that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.function(*args, **kwargs)


def fake(shapes: Shapes, *sizes: int, **options) -> torch.Tensor:
    with shapes.mode:
        return torch.empty(sizes, **options)


def test_a_call_is_computed_once_for_each_kind_of_inputs():
    shapes, compute = Shapes(), Counting(F.softmax)
    x = fake(shapes, 2, 5)
    inputs = [
        ((x,), {"dim": 1}),
        ((fake(shapes, 2, 5),), {"dim": 1}),  # the same
        ((fake(shapes, 3, 5),), {"dim": 1}),
        ((fake(shapes, 2, 5, dtype=torch.float64),), {"dim": 1}),
        ((fake(shapes, 5, 2).T,), {"dim": 1}),  # other strides
    ]
    with shapes.mode:
        results = [shapes.run(F.softmax, args, kwargs, compute) for args, kwargs in inputs]
    assert compute.calls == 4
    assert [tuple(r.shape) for r in results] == [(2, 5), (2, 5), (3, 5), (2, 5), (2, 5)]
    assert results[3].dtype is torch.float64


def test_numbers_are_told_apart_by_their_types():
    shapes, compute = Shapes(), Counting(torch.mul)
    x = fake(shapes, 2, dtype=torch.int64)
    with shapes.mode:
        dtypes = [shapes.run(torch.mul, (x, factor), {}, compute).dtype for factor in (1, True, 1.0, 1)]
    assert compute.calls == 3
    assert dtypes == [torch.int64, torch.int64, torch.float32, torch.int64]


def test_layers_are_told_apart_by_their_settings_and_mode():
    shapes, x = Shapes(), None
    first, same, wide, held = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3)
    held.register_forward_hook(lambda *given: None)
    x = fake(shapes, 2, 3, 8, 8)
    counted = {name: Counting(m) for name, m in {"first": first, "same": same, "wide": wide, "held": held}.items()}
    with shapes.mode, torch.no_grad():
        for name, module in {"first": first, "same": same, "wide": wide, "held": held}.items():
            result = shapes.run(module, (x,), {}, counted[name])
            assert result.shape[-1] == (8 if name == "wide" else 6)
        shapes.run(first.eval(), (x,), {}, counted["first"])
    assert {name: one.calls for name, one in counted.items()} == {"first": 2, "same": 0, "wide": 1, "held": 1}


def test_functions_of_others_are_called_every_time():
    shapes = Shapes()
    calls = []

    def own(x):
        calls.append(x)
        return x

    x = fake(shapes, 2)
    with shapes.mode:
        for _ in range(2):
            shapes.run(own, (x,), {}, own)
    assert len(calls) == 2


def test_a_shape_that_is_written_is_not_written_into_what_others_hold():
    shapes = Shapes()
    x = fake(shapes, 2, 3)
    with shapes.mode:
        y = shapes.run("relu", (x,), {}, methodcaller("relu"))
        z = shapes.run("unsqueeze_", (y, 0), {}, methodcaller("unsqueeze_"))
    assert tuple(z.shape) == (1, 2, 3)
    assert tuple(y.shape) == (2, 3)


def test_tensors_that_know_their_values_are_computed_with():
    shapes = Shapes()
    with shapes.mode as mode:
        assert isinstance(mode, FakeTensorMode)
        two, three = torch.tensor(2), torch.tensor(3)  # one shape
        assert [shapes.run("item", (x,), {}, methodcaller("item")) for x in (two, three)] == [2, 3]
