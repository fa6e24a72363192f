from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from qat.functional.ste import RELU, RELU6, Clamp
from qat.placement.capture import capture
from qat.placement.patterns import Role, clamp_of, role_of
from qat.placement.shapes import propagate_shapes

X = torch.zeros(2, 4, 8, 8)


def last_node(model: nn.Module, x: torch.Tensor = X) -> tuple[fx.Node, dict[str, nn.Module]]:
    """The node that computes a model's output, with shapes."""
    graph = capture(model.eval(), (x,), {}).eval
    propagate_shapes(model, graph, (x,), {})
    (output,) = (n for n in graph.nodes if n.op == "output")
    return output.args[0], dict(model.named_modules())


class Function(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("module", "role"),
    [
        (nn.Conv2d(4, 4, 1), Role.WEIGHTED),
        (nn.BatchNorm2d(4), Role.NORM),
        (nn.BatchNorm2d(4, track_running_stats=False), Role.FLOAT),  # every batch has its own statistics
        (nn.ReLU(), Role.CLAMP),
        (nn.ReLU6(), Role.CLAMP),
        (nn.Hardtanh(0.0, 2.0), Role.CLAMP),
        (nn.Hardtanh(), Role.FLOAT),  # zero is inside
        (nn.LeakyReLU(), Role.FLOAT),
        (nn.MaxPool2d(2), Role.MOVE),
        (nn.AvgPool2d(2), Role.ARITHMETIC),
        (nn.AdaptiveAvgPool2d(1), Role.ARITHMETIC),
        (nn.Flatten(), Role.MOVE),
        (nn.ZeroPad2d(1), Role.MOVE),
        (nn.ReflectionPad2d(1), Role.FLOAT),
        (nn.Dropout(), Role.IDENTITY),
        (nn.GroupNorm(2, 4), Role.FLOAT),
        (nn.ConvTranspose2d(4, 4, 1), Role.FLOAT),
    ],
    ids=str,
)
def test_roles_of_modules(module, role):
    assert role_of(*last_node(nn.Sequential(module))) is role


@pytest.mark.parametrize(
    ("function", "role"),
    [
        (lambda x: F.relu(x), Role.CLAMP),
        (lambda x: x.relu(), Role.CLAMP),
        (lambda x: torch.relu(x), Role.CLAMP),
        (lambda x: F.hardtanh(x, 0.0, 6.0), Role.CLAMP),
        (lambda x: F.hardtanh(x), Role.FLOAT),
        (lambda x: x + x, Role.ARITHMETIC),
        (lambda x: x.add(x), Role.ARITHMETIC),
        (lambda x: torch.add(x, x), Role.ARITHMETIC),
        (lambda x: torch.add(x, x, alpha=2), Role.FLOAT),
        (lambda x: x + 1, Role.FLOAT),
        (lambda x: operator.mul(x, x), Role.ARITHMETIC),
        (lambda x: torch.cat([x, x], 1), Role.ARITHMETIC),
        (lambda x: x.mean((2, 3)), Role.ARITHMETIC),
        (lambda x: torch.mean(x, dim=[-1, -2], keepdim=True), Role.ARITHMETIC),
        (lambda x: x.mean(1), Role.FLOAT),
        (lambda x: x.mean(), Role.FLOAT),
        (lambda x: F.max_pool2d(x, 2), Role.MOVE),
        (lambda x: F.avg_pool2d(x, 2), Role.ARITHMETIC),
        (lambda x: x[:, :2], Role.MOVE),
        (lambda x: x.flatten(1), Role.MOVE),
        (lambda x: F.pad(x, (1, 1)), Role.MOVE),
        (lambda x: F.pad(x, (1, 1), value=0.0), Role.MOVE),
        (lambda x: F.pad(x, (1, 1), value=1.0), Role.FLOAT),  # 1.0 may lie between two steps
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), Role.FLOAT),
        (lambda x: F.dropout(x, 0.5, False), Role.IDENTITY),
        (lambda x: torch.sigmoid(x), Role.ARITHMETIC),
        (lambda x: x * 0.5, Role.SCALE),
        (lambda x: 2 * x, Role.SCALE),
        (lambda x: x / 4, Role.SCALE),
        (lambda x: 4 / x, Role.FLOAT),
        (lambda x: x * -1.0, Role.FLOAT),  # would mirror the grid
        (lambda x: x / x, Role.FLOAT),
        (lambda x: x @ x.transpose(-1, -2), Role.ARITHMETIC),
        (lambda x: x.clamp(0, 3), Role.CLAMP),
        (lambda x: torch.clamp(x, min=0.0), Role.CLAMP),
        (lambda x: x.clamp(-1, 3), Role.FLOAT),
        (lambda x: F.linear(x, x[0, 0]), Role.FLOAT),  # both factors are activations
        (lambda x: torch.roll(x, 1, 2), Role.MOVE),
    ],
)
def test_roles_of_functions_and_methods(function, role):
    assert role_of(*last_node(Function(function))) is role


def test_a_subclass_with_a_forward_of_its_own_is_not_its_layer():
    class Scaled(nn.ReLU):
        def forward(self, x):
            return super().forward(x) * 2

    class Renamed(nn.ReLU):
        pass

    fx_leaf = nn.Sequential(Renamed())
    assert role_of(*last_node(fx_leaf)) is Role.CLAMP
    graph = fx.Graph()
    node = graph.call_module("act", (graph.placeholder("x"),))
    assert role_of(node, {"act": Scaled()}) is Role.FLOAT


@pytest.mark.parametrize(
    ("model", "clamp"),
    [
        (nn.Sequential(nn.ReLU()), RELU),
        (nn.Sequential(nn.ReLU6(inplace=True)), RELU6),
        (nn.Sequential(nn.Hardtanh(0.0, 1.0)), Clamp(0.0, 1.0)),
        (Function(lambda x: F.hardtanh(x, min_val=0.0, max_val=3.0)), Clamp(0.0, 3.0)),
        (Function(lambda x: F.relu6(x)), RELU6),
        (Function(lambda x: x.relu_()), RELU),
        (Function(lambda x: F.hardtanh(x, -1.0, 1.0)), None),
    ],
)
def test_clamps(model, clamp):
    assert clamp_of(*last_node(model)) == clamp
