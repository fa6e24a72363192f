from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.errors import CaptureError
from qat.placement.capture import capture

X = torch.zeros(2, 3)


class Dropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)


def test_both_modes_are_traced_and_one_graph_is_kept_where_they_agree():
    assert capture(nn.Sequential(nn.Dropout(), nn.Linear(3, 2)), (X,), {}).modes_agree
    captured = capture(Dropout(), (X,), {})
    assert not captured.modes_agree
    train, evaluation = (
        next(n for n in g.nodes if n.op == "call_function").kwargs["training"] for g in (captured.train, captured.eval)
    )
    assert (train, evaluation) == (True, False)


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_left_as_they_were(training):
    model = nn.Sequential(nn.Linear(3, 2), Dropout()).train(training)
    model[1].training = not training
    capture(model, (X,), {})
    assert [m.training for m in model.modules()] == [training, training, not training]


def test_modes_are_restored_after_an_error():
    class Fails(nn.Module):
        def forward(self, x):
            return x if bool(x.sum() > 0) else -x

    model = Fails().train()
    with pytest.raises(CaptureError, match=r"Fails cannot be traced at .*test_capture\.py:\d+: return x if bool"):
        capture(model, (X,), {})
    assert model.training


def test_settings_are_no_inputs_of_the_graph():
    class Settings(nn.Module):
        def forward(self, x, mask=None, *, scale=2.0, deep=False):
            if deep:
                x = x * 2
            return x * scale if mask is None else x * mask

    def inputs(*args, **kwargs):
        return [n.target for n in capture(Settings(), args, kwargs).eval.nodes if n.op == "placeholder"]

    assert inputs(X) == ["x"]
    assert inputs(X, mask=X) == ["x", "mask"]
    assert inputs(X, X, deep=True) == ["x", "mask"]
    assert inputs(X, scale=X) == ["x", "scale"]


def test_inputs_that_forward_does_not_take():
    with pytest.raises(
        CaptureError, match=r"Dropout\.forward\(x\) cannot be called with 1 positional inputs and keywords"
    ):
        capture(Dropout(), (X,), {"y": X})


def test_what_is_written_in_place_is_read_from_there():
    class Inplace(nn.Module):
        def forward(self, x):
            y = x + 1
            early = y * 3
            y.relu_()
            return early + y * y

    graph = capture(Inplace(), (X,), {}).eval
    plus, early, relu, square, total = (n for n in graph.nodes if n.op.startswith("call"))
    assert early.args[0] is plus  # read before the write
    assert square.args == (relu, relu)
    assert total.args == (early, square)


def test_a_named_class_stays_whole():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x)

    model = nn.Sequential(Block())
    targets = [n.target for n in capture(model, (X,), {}, (Block,)).eval.nodes if n.op == "call_module"]
    assert targets == ["0"]
    targets = [n.target for n in capture(model, (X,), {}).eval.nodes if n.op == "call_module"]
    assert targets == ["0.linear"]
