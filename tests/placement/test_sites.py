from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qat.functional.ste import IDENTITY, RELU, Clamp
from qat.placement.capture import capture
from qat.placement.shapes import propagate_shapes
from qat.placement.sites import Sites, find_sites, name_nodes
from qat.target import CURVES

X = torch.zeros(2, 4, 8, 8)


class Net(nn.Module):
    """A forward pass given as a function of the net and its input."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.conv, self.other, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.function(self, x)


def sites_of(function, exclude: tuple[str, ...] = (), *, once: bool = False, curves: bool = False) -> Sites:
    model = Net(function)
    graph = capture(model, (X,), {}).eval
    names = name_nodes(graph)
    propagate_shapes(model, graph, (X,), {})
    left = {name: name for name in exclude}
    return find_sites(
        graph, dict(model.named_modules()), names, left, sums_round_once=once, conv_curves=CURVES if curves else ()
    )


def points(function, exclude: tuple[str, ...] = (), *, once: bool = False, curves: bool = False) -> dict[str, Clamp]:
    sites = sites_of(function, exclude, once=once, curves=curves)
    return {sites.names[node]: clamp for node, clamp in sites.points.items()}


def test_an_integer_operator_reads_a_grid_and_makes_one_behind_its_tail():
    assert points(lambda m, x: m.relu(m.norm(m.conv(x)))) == {"x": IDENTITY, "relu": RELU}
    assert points(lambda m, x: m.norm(m.conv(x))) == {"x": IDENTITY, "norm": IDENTITY}
    assert points(lambda m, x: m.conv(x)) == {"x": IDENTITY, "conv": IDENTITY}


def test_a_tail_ends_where_a_value_has_two_readers():
    def function(m, x):
        y = m.norm(m.conv(x))
        return m.relu(y) + y

    assert points(function) == {"x": IDENTITY, "norm": IDENTITY, "relu": RELU, "add": IDENTITY}


@pytest.mark.parametrize(
    ("function", "without"),
    [
        (lambda m, x: x + m.norm(m.conv(x)), "norm"),
        (lambda m, x: m.relu(m.conv(x) + x), "conv"),
        (lambda m, x: m.norm(m.conv(x)) + m.other(x), "norm"),  # of two, the first
        (lambda m, x: m.other(x) + m.norm(m.conv(x)), "other"),
        (lambda m, x: x + m.relu(m.conv(x)), None),  # rounded where the activation clamps
        (lambda m, x: x + m.conv(x).mean((2, 3), keepdim=True), None),
        (lambda m, x: m.other(y := m.conv(x)) + y, "other"),
        (lambda m, x: x * m.conv(x), None),
    ],
)
def test_a_convolution_in_front_of_a_sum_where_the_target_rounds_once(function, without):
    twice = points(function)
    assert points(function, once=True) == {name: clamp for name, clamp in twice.items() if name != without}


def test_what_is_excluded_around_a_sum_that_is_rounded_once():
    function = lambda m, x: x + m.conv(x)  # noqa: E731
    assert points(function, ("conv",), once=True) == points(function, ("conv",))
    assert points(function, ("add",), once=True) == points(function, ("add",))


@pytest.mark.parametrize(
    ("function", "twice", "once"),
    [
        (lambda m, x: F.silu(m.norm(m.conv(x))), ["norm"], ["silu"]),
        (lambda m, x: F.gelu(m.conv(x)), ["conv"], ["gelu"]),
        (lambda m, x: torch.tanh(m.conv(x)), ["conv"], ["tanh"]),
        (lambda m, x: m.conv(x).sigmoid(), ["conv", "sigmoid"], ["sigmoid"]),
        (lambda m, x: m.other(F.elu(m.conv(x))), ["conv", "elu", "other"], ["elu", "other"]),
        # not behind a layer with a weight, or not alone behind it
        (lambda m, x: F.silu(m.conv(x) + x), ["conv", "add"], ["conv", "add"]),
        (lambda m, x: torch.sigmoid(y := m.conv(x)) * y, ["conv", "sigmoid", "mul"], ["conv", "sigmoid", "mul"]),
        (lambda m, x: F.silu(m.relu(m.conv(x))), ["relu"], ["relu"]),
        (lambda m, x: F.softmax(m.conv(x), 1), ["conv"], ["conv"]),
        (lambda m, x: F.silu(F.gelu(m.conv(x))), ["conv"], ["gelu"]),
    ],
)
def test_a_curve_behind_a_layer_where_the_target_rounds_once(function, twice, once):
    assert list(points(function)) == ["x", *twice]
    assert list(points(function, curves=True)) == ["x", *once]


def test_convolutions_of_one_dimension_take_no_curve_in():
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.SiLU())
    x = torch.zeros(2, 4, 8)
    graph = capture(model, (x,), {}).eval
    propagate_shapes(model, graph, (x,), {})
    names = name_nodes(graph)
    sites = find_sites(graph, dict(model.named_modules()), names, {}, conv_curves=CURVES)
    assert [sites.names[node] for node in sites.points] == ["input", "0"]


def test_a_curve_that_is_excluded_is_not_taken_in():
    function = lambda m, x: F.silu(m.conv(x))  # noqa: E731
    for excluded in ("silu", "conv"):
        assert points(function, (excluded,), curves=True) == points(function, (excluded,))


def test_a_curve_of_ones_own_is_not_taken_for_the_one_it_is_made_from():
    class Twice(nn.SiLU):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(nn.Conv2d(4, 4, 1), Twice())
    graph = capture(model, (X,), {}, (Twice,)).eval
    propagate_shapes(model, graph, (X,), {})
    names = name_nodes(graph)
    sites = find_sites(graph, dict(model.named_modules()), names, {}, conv_curves=CURVES)
    assert [sites.names[node] for node in sites.points] == ["input", "0"]


def test_moves_stay_on_the_grid_of_their_input():
    found = points(lambda m, x: m.other(F.max_pool2d(m.conv(x), 2)[:, :4].contiguous()))
    assert found == {"x": IDENTITY, "conv": IDENTITY, "other": IDENTITY}


def test_a_move_before_the_first_integer_operator():
    """The input itself could go onto the grid as well; what counts is that the operator reads one."""
    assert points(lambda m, x: m.conv(x[:, :4])) == {"getitem": IDENTITY, "conv": IDENTITY}


def test_a_float_operator_gets_no_quantizer_of_its_own():
    assert points(lambda m, x: torch.tanh(m.conv(x))) == {"x": IDENTITY, "conv": IDENTITY}
    assert points(lambda m, x: m.conv(torch.tanh(x))) == {"tanh": IDENTITY, "conv": IDENTITY}


def test_the_activation_of_a_float_operator_is_absorbed_by_the_reader():
    assert points(lambda m, x: m.conv(m.relu(torch.tanh(x)))) == {"relu": RELU, "conv": IDENTITY}


def test_every_input_of_an_addition_is_on_a_grid():
    found = points(lambda m, x: m.relu(torch.tanh(x) + m.conv(x)))
    assert found == {"tanh": IDENTITY, "x": IDENTITY, "conv": IDENTITY, "relu": RELU}


def test_excluded_operators_are_float():
    found = points(lambda m, x: m.relu(m.norm(m.conv(x))), exclude=("conv",))
    assert found == {}
    found = points(lambda m, x: m.other(m.relu(m.norm(m.conv(x)))), exclude=("norm",))
    assert found == {"x": IDENTITY, "conv": IDENTITY, "relu": RELU, "other": IDENTITY}


def test_names_count_repeated_operators_and_carry_their_scope():
    model = nn.Sequential(Net(lambda m, x: m.relu(m.relu(x) + x) + x))
    graph = capture(model, (X,), {}).eval
    assert list(name_nodes(graph).values())[:-1] == ["input", "0.relu", "0.add", "0.relu_2", "0.add_2"]


def test_names_in_the_other_mode_are_those_of_the_same_operators():
    def function(m, x):
        if m.training:
            x = x + x * 2
        return m.relu(m.conv(x) + x) + x

    captured = capture(Net(function), (X,), {})
    evaluation = name_nodes(captured.eval)
    assert list(evaluation.values()) == ["x", "conv", "add", "relu", "add_2", "output"]
    training = name_nodes(captured.train, like=evaluation)
    assert list(training.values()) == ["x", "mul", "add_3", "conv", "add", "relu", "add_2", "output"]
