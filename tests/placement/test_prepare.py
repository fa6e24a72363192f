"""The promise: with fake quantization off, a prepared model *is* the float model, bit for bit, whatever the code."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import qat
from qat.errors import CaptureError, ConfigError, NumericsError, PlacementError
from qat.models import build
from qat.placement.prepared import batchnorms

EPS, MOMENTUM = 1e-3, 0.01


def conv_norm(c_in: int, c_out: int, kernel: int = 3, **kwargs: Any) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False, **kwargs)
    return [conv, nn.BatchNorm2d(c_out, eps=EPS, momentum=MOMENTUM)]


class Base(nn.Module):
    """Two convolutions with BatchNorm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv_norm(3, 6)
        self.conv2, self.norm2 = conv_norm(6, 6)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(6, 4)

    def head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class SharedReLU(Base):
    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.relu(self.norm2(self.conv2(x)) + x))


class ConvTwice(Base):
    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.conv2(F.relu(self.conv2(x))))


class NormTwice(Base):
    def forward(self, x):
        x = F.relu(self.norm2(self.conv2(self.conv1(x))))
        return self.head(self.norm2(self.conv2(x)))


class NormWithTwoReaders(Base):
    def forward(self, x):
        y = self.norm1(self.conv1(x))
        return self.head(F.relu(self.norm2(self.conv2(F.relu(y)))) + y)


class ConvWithTwoReaders(Base):
    def forward(self, x):
        y = self.conv1(x)
        return self.head(F.relu(self.norm1(y)) + self.conv2(y))


class ConvBesideItsReLU(Base):
    def forward(self, x):
        y = self.conv1(x)
        return self.head(F.relu6(y) + y + self.conv2(F.relu(y)))


class InplaceWithALaterReader(Base):
    """`relu` writes into `y`, so the addition reads the activation twice."""

    def forward(self, x):
        y = self.norm1(self.conv1(x))
        return self.head(self.conv2(self.relu(y)) + y)


class InplaceAdd(Base):
    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        z = self.norm2(self.conv2(y))
        z += y
        return self.head(self.relu(z))


class Functional(Base):
    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(F.pad(x, (1, 0, 1, 0)))))
        first, second = x.chunk(2, dim=1)
        x = torch.cat([second, F.relu6(first), x[:, :2]], dim=1)[:, :6]
        x = F.max_pool2d(self.norm2(self.conv2(x)).relu_(), 2)
        x = F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1)
        return self.fc(torch.flatten(x, 1))


class FloatResidual(Base):
    """A gate that no integer kernel computes, beside a residual that one does."""

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        gate = torch.sigmoid(self.conv2(x))
        return self.head(x * gate + x)


class FunctionalDropout(Base):
    """fx bakes `self.training` in: two graphs."""

    def forward(self, x):
        x = F.dropout(F.relu(self.norm1(self.conv1(x))), 0.5, training=self.training)
        return F.dropout(self.head(self.norm2(self.conv2(x))), p=0.2, training=self.training)


class StochasticDepth(Base):
    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x))
        if self.training:
            y = y * y.new_empty(y.shape[0], 1, 1, 1).bernoulli_(0.5)
        return self.head(x + y)


class NoiseInTraining(Base):
    """An addition of one mode alone, before the one that both have."""

    def forward(self, x):
        if self.training:
            x = x + 100 * x.flip(0)
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.norm2(self.conv2(x)) + x)


class AuxiliaryHead(Base):
    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        y = self.head(self.norm2(self.conv2(x)))
        return (y, x.mean((2, 3))) if self.training else y


class Keywords(Base):
    def forward(self, x, shift=None, *, scale=1.0, features=False):
        x = self.relu(self.norm1(self.conv1(x)))
        if shift is not None:
            x = x + shift
        return {"features": x, "logits": self.head(x * scale)} if features else self.head(x * scale)


class FloatNorm(Base):
    """A BatchNorm first of all, without statistics or weights of its own elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, eps=EPS)
        self.norm2 = nn.BatchNorm2d(6, affine=False)
        self.instance = nn.GroupNorm(2, 6)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(self.first(x))))
        return self.head(self.instance(F.relu(self.norm2(self.conv2(x)))))


class BatchStatistics(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.BatchNorm2d(6, track_running_stats=False)

    def forward(self, x):
        return self.head(self.norm2(self.relu(self.norm1(self.conv1(x)))))


class PreActivation(Base):
    """BatchNorm before the convolution, behind an addition: nothing to fold it into."""

    def forward(self, x):
        x = self.conv1(x)
        x = x + self.conv2(F.relu(self.norm1(x)))
        return self.head(F.relu(self.norm2(x)))


class CumulativeNorm(Base):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(6, momentum=None)

    def forward(self, x):
        return self.head(F.relu6(self.norm1(self.conv1(x))))


class Tied(Base):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3.weight = self.conv2.weight

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.conv3(F.relu(self.norm2(self.conv2(x)))))


class SameModuleTwoNames(Base):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.conv2

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.alias(F.relu(self.conv2(x))))


class OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6, eps=EPS, momentum=MOMENTUM)
        self.fc, self.norm2 = nn.Linear(6, 5), nn.BatchNorm1d(5, eps=EPS, momentum=MOMENTUM)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x.flatten(2))))
        return F.hardtanh(self.norm2(self.fc(x.amax(2))), 0.0, 2.0)


class ParameterOfItsOwn(Base):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(6, 1, 1))
        self.register_buffer("offset", torch.randn(6, 1, 1), persistent=False)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        return self.head(self.norm2(self.conv2(x * self.gain)) + self.offset)


HAND_WRITTEN = [
    SharedReLU, ConvTwice, NormTwice, NormWithTwoReaders, ConvWithTwoReaders, ConvBesideItsReLU,
    InplaceWithALaterReader, InplaceAdd, Functional, FloatResidual, FunctionalDropout, StochasticDepth, AuxiliaryHead,
    NoiseInTraining, Keywords, FloatNorm, BatchStatistics, CumulativeNorm, Tied, SameModuleTwoNames, OneDimensional,
    ParameterOfItsOwn, PreActivation,
]  # fmt: skip
TWO_GRAPHS = (FunctionalDropout, StochasticDepth, NoiseInTraining, AuxiliaryHead)
ZOO = {
    "mobilenet_v2": lambda: build("mobilenet_v2", 10, width_mult=0.35),
    "resnet18": lambda: build("resnet18", 10),
    "resnet20": lambda: build("resnet20", 10),
}


def batch(size: int = 4) -> Tensor:
    return torch.randn(size, 3, 32, 32) if size > 4 else torch.randn(size, 3, 12, 12)


def call(model: nn.Module, x: Tensor, **kwargs: Any) -> Any:
    torch.manual_seed(7)  # dropout
    return model(x, **kwargs)


def assert_same(ours: Any, theirs: Any) -> None:
    ours, structure = pytree.tree_flatten(ours)
    theirs, expected = pytree.tree_flatten(theirs)
    assert structure == expected
    assert all(torch.equal(a, b) if isinstance(b, Tensor) else a is b for a, b in zip(ours, theirs, strict=True))


def assert_is_the_float_model(prepared: nn.Module, model: nn.Module, shape: tuple[int, ...], **kwargs: Any) -> None:
    """Output, state and gradients in eval, in train, and after train, eval, train."""
    qat.fake_quant(prepared, enabled=False)
    for mode in (False, True, False, True, True):
        x = torch.randn(shape)
        assert_same(call(prepared.train(mode), x.clone(), **kwargs), call(model.train(mode), x.clone(), **kwargs))
        state = prepared.state_dict()
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    x = torch.randn(shape)
    for m in (prepared, model):
        sum(t.sum() for t in pytree.tree_leaves(call(m, x.clone(), **kwargs))).backward()
    grads = dict(prepared.named_parameters())
    for name, parameter in model.named_parameters():
        assert_same(grads[name].grad, parameter.grad)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_per_tensor"])
@pytest.mark.parametrize("net", HAND_WRITTEN)
def test_with_fake_quant_off_it_is_the_float_model(net, recipe, randomize):
    model = randomize(net())
    prepared = qat.prepare(model, batch(), recipe)
    assert_is_the_float_model(prepared, model, (4, 3, 12, 12))


@pytest.mark.parametrize("name", ZOO)
def test_with_fake_quant_off_zoo_models_are_the_float_model(name, randomize):
    model = randomize(ZOO[name]())
    for norm in batchnorms(model):
        norm.eps, norm.momentum = EPS, MOMENTUM
    prepared = qat.prepare(model, torch.randn(1, 3, 32, 32))
    assert {(n.eps, n.momentum) for n in batchnorms(prepared)} == {(EPS, MOMENTUM)}
    assert_is_the_float_model(prepared, model, (3, 3, 32, 32))


@pytest.mark.parametrize("net", HAND_WRITTEN)
def test_one_graph_serves_both_modes_where_the_code_allows(net):
    prepared = qat.prepare(net(), batch())
    same = str(prepared.graphs[True]) == str(prepared.graphs[False])
    assert same == (net not in TWO_GRAPHS)


@pytest.mark.parametrize("net", TWO_GRAPHS, ids=lambda net: net.__name__)
def test_modes_share_the_quantizers_of_the_operators_that_they_share(net):
    """What is learned in training is what is deployed: a quantizer stands behind the same operator in both."""
    prepared = qat.prepare(net(), batch())

    def behind(mode: bool) -> dict[str, str]:
        nodes = {str(n.target): n for n in prepared.graphs[mode].nodes if n.op == "call_module"}
        reads = {name: n.all_input_nodes[0] for name, n in nodes.items() if name.endswith("quantizer")}
        return {name: f"{value.target} of {len(value.all_input_nodes)}" for name, value in reads.items()}

    shared = behind(False)
    assert shared == {name: value for name, value in behind(True).items() if name in shared}


@pytest.mark.parametrize("net", HAND_WRITTEN)
def test_with_fake_quant_on_it_trains_and_evaluates(net, randomize):
    """Every quantizer of the mode learns, gradients reach every parameter, and two evaluations agree."""
    model = randomize(net())
    prepared = qat.prepare(model, batch()).train()
    out = pytree.tree_leaves(call(prepared, batch()))
    sum(t.sum() for t in out).backward()
    used = {n for n, p in model.named_parameters() if gradient_of(model, n)}
    assert {n for n, p in prepared.named_parameters() if p.grad is not None} == used
    prepared.eval()
    x = batch()
    assert_same(call(prepared, x), call(prepared, x))


def gradient_of(model: nn.Module, name: str) -> bool:
    if not any(p.grad is not None for p in model.parameters()):
        sum(t.sum() for t in pytree.tree_leaves(call(model.train(), batch()))).backward()
    return dict(model.named_parameters())[name].grad is not None


# A step of a value inside these nets moves the output by a few of its own; a wrong grid, or a lost activation, by more
FLIPS = 0.03  # of the output's range
CLOSE = 0.9  # share of outputs that agree to a hundredth of their range


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_per_tensor", "w8a8_symmetric"])
@pytest.mark.parametrize("net", HAND_WRITTEN)
def test_what_placement_decides_converts_to_the_same_function(net, recipe, randomize):
    prepared = qat.prepare(randomize(net()).eval(), batch(), recipe)
    x = batch(4).repeat(4, 1, 1, 1) + 0.1 * torch.randn(16, 3, 12, 12)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    with torch.no_grad():
        (ours,), (theirs,) = (pytree.tree_leaves(model(x)) for model in (integer, prepared))
    difference = (ours - theirs).abs() / (theirs.amax() - theirs.amin())
    assert difference.max() <= FLIPS
    assert (difference < 0.01).float().mean() >= CLOSE


@pytest.mark.parametrize("kwargs", [{}, {"shift": 1}, {"scale": 2.0}, {"features": True}])
def test_keyword_inputs_and_defaults(kwargs, randomize):
    model = randomize(Keywords())
    given = {k: torch.randn(4, 6, 12, 12) if k == "shift" else v for k, v in kwargs.items()}
    prepared = qat.prepare(model, batch(), example_kwargs=given)
    qat.fake_quant(prepared, enabled=False)
    x = batch()
    settings = {k: v for k, v in given.items() if isinstance(v, bool)}  # fixed at what the example says
    inputs = {k: v for k, v in given.items() if k not in settings}
    for mode in (False, True):
        assert_same(prepared.train(mode)(x, **inputs), model.train(mode)(x, **given))


def test_inputs_by_keyword_alone(randomize):
    model = randomize(SharedReLU())
    prepared = qat.prepare(model, (), example_kwargs={"x": batch()})
    qat.fake_quant(prepared, enabled=False)
    x = batch()
    assert torch.equal(prepared.eval()(x=x), model.eval()(x=x))


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mobilenet_v2", "onnxruntime"),
        ("resnet18", "onnxruntime"),
        ("resnet20", "onnxruntime"),
        ("resnet20", "onnxruntime_vnni"),  # the targets differ in the width of weights alone; one model shows it
    ],
)
def test_golden_plan(name, target, golden):
    """Between input and logits nothing is left in float."""
    size, classes = (32, 10) if name == "resnet20" else (224, 1000)
    plan = qat.prepare(build(name, classes), torch.zeros(1, 3, size, size), target=target).plan
    assert plan.in_float == ()
    assert plan.int8_mac_share == 1.0
    golden(f"{name}-{target}.plan.txt", str(plan))


# what prepare leaves alone


@pytest.mark.parametrize("training", [True, False])
def test_the_argument_is_untouched(training, randomize):
    model = randomize(FunctionalDropout()).train(training)
    model.conv1.eval()  # a mode of its own
    hooks = []
    model.conv2.register_forward_hook(lambda *_: hooks.append(1))
    before = copy.deepcopy(model.state_dict())
    kinds = {n: (type(m), m.training) for n, m in model.named_modules()}
    parameters = {n: id(p) for n, p in model.named_parameters()}
    x = batch()
    copied = copy.deepcopy(model)
    prepared = qat.prepare(model, x)
    prepared(batch()) if training else prepared.train()(batch())

    assert_same(model.state_dict(), before)
    assert {n: (type(m), m.training) for n, m in model.named_modules()} == kinds
    assert {n: id(p) for n, p in model.named_parameters()} == parameters
    assert not set(parameters.values()) & {id(p) for p in prepared.parameters()}
    hooks.clear()
    assert_same(call(model, x), call(copied, x))
    assert hooks == [1, 1]  # the copy's hook is the same function; each model called it once


def test_the_copy_is_in_the_mode_of_the_argument():
    assert qat.prepare(SharedReLU().train(), batch()).training
    prepared = qat.prepare(SharedReLU().eval(), batch())
    assert not any(m.training for m in prepared.modules())


def test_example_inputs_are_not_written_to_and_one_example_is_enough(randomize):
    x = torch.randn(1, 3, 12, 12)
    before = x.clone()
    prepared = qat.prepare(randomize(SharedReLU()), x)
    assert torch.equal(x, before)
    assert prepared.example_inputs[0].shape[0] == 2
    assert prepared(torch.randn(5, 3, 16, 16)).shape == (5, 4)  # neither batch nor size is baked in


def test_requires_grad_is_kept(randomize):
    model = randomize(SharedReLU())
    model.conv1.weight.requires_grad_(False)
    prepared = qat.prepare(model, batch())
    frozen = [n for n, p in prepared.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1.weight"]


# names


@pytest.mark.parametrize("net", HAND_WRITTEN)
def test_a_float_state_dict_loads_and_comes_back(net, randomize):
    model, other = randomize(net()), randomize(net())
    prepared = qat.prepare(other, batch())
    missing, unexpected = prepared.load_state_dict(model.state_dict(), strict=False)
    assert unexpected == []
    assert all("quantizer" in key for key in missing)
    buffers = dict(prepared.named_buffers())
    assert set(missing) <= set(buffers)  # grids are state, not parameters: the optimizer is the float model's
    assert [n for n, _ in prepared.named_parameters()] == [n for n, _ in model.named_parameters()]
    state = prepared.state_dict()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    back = net()
    back.load_state_dict({k: v for k, v in state.items() if k in model.state_dict()}, strict=True)


def test_a_prepared_state_dict_carries_the_ranges(randomize):
    model = randomize(SharedReLU())
    prepared, other = qat.prepare(model, batch()), qat.prepare(SharedReLU(), batch())
    qat.calibrate(prepared, [batch()])
    other.load_state_dict(prepared.state_dict(), strict=True)
    x = batch()
    assert torch.equal(prepared.eval()(x), other.eval()(x))


# copies


def deep(prepared: nn.Module) -> nn.Module:
    return copy.deepcopy(prepared)


def pickled(prepared: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(prepared))


@pytest.mark.parametrize("clone", [deep, pickled])
@pytest.mark.parametrize("net", [FunctionalDropout, Functional, AuxiliaryHead, SameModuleTwoNames])
def test_copies_compute_the_same_and_are_independent(net, clone: Callable, randomize):
    prepared = qat.prepare(randomize(net()), batch())
    qat.calibrate(prepared, [batch()])
    qat.freeze_batchnorm(prepared)
    other = clone(prepared)
    for mode in (False, True, False):
        x = batch()
        assert_same(call(prepared.train(mode), x), call(other.train(mode), x))
    assert str(other.plan) == str(prepared.plan)
    assert other.batchnorm_frozen
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    with torch.no_grad():
        for tensor in [*other.parameters(), *other.buffers()]:
            tensor.zero_()
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())


def test_a_deep_model_pickles(randomize):
    """A graph is a linked list of nodes; 100 layers of it would exceed Python's recursion limit."""
    prepared = qat.prepare(randomize(build("mobilenet_v2", 10, width_mult=0.1)), torch.zeros(1, 3, 32, 32)).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(pickled(prepared)(x), prepared(x))


# rules


def test_excluded_modules_stay_in_float(randomize):
    prepared = qat.prepare(randomize(SharedReLU()), batch(), exclude=["conv1", "fc"])
    assert type(prepared.conv1) is nn.Conv2d
    assert type(prepared.fc) is nn.Linear
    assert isinstance(prepared.conv2, qat.layers.FakeQuantConv2d)
    why = {op.name: op.why for op in prepared.plan.in_float}
    assert why["conv1"] == "excluded by 'conv1'"
    assert why["fc"] == "excluded by 'fc'"


def test_a_batchnorm_behind_an_addition_is_an_integer_operator(randomize):
    prepared = qat.prepare(randomize(PreActivation()), batch())
    ops = {op.name: op for op in prepared.plan.ops}
    assert ops["norm2"].integer
    assert ops["norm2"].fused == ("relu",)
    assert isinstance(prepared.norm2, qat.layers.FakeQuantBatchNorm2d)


def test_a_batchnorm_behind_a_float_operator_is_float_and_says_why(randomize):
    plan = qat.prepare(randomize(SharedReLU()), batch(), exclude=["conv1"]).plan
    why = {op.name: op.why for op in plan.in_float}
    assert why["norm1"] == "no convolution before it to fold into"


def test_patterns_of_recipe_and_call_add_up(randomize):
    recipe = {**qat.presets.load_preset("quant", "w8a8"), "exclude": ["conv1"]}
    prepared = qat.prepare(randomize(SharedReLU()), batch(), recipe, exclude=["f?"])
    assert {"conv1", "fc"} <= {op.name for op in prepared.plan.in_float}


def test_patterns_that_match_nothing_fail_together():
    with pytest.raises(PlacementError, match=r"(?s)no operator.*'conv9' \(nearest: conv.*'layer1\.\*'.*plan\.txt"):
        qat.prepare(SharedReLU(), batch(), exclude=["conv9", "conv1", "layer1.*"])


def test_a_leaf_module_stays_whole_and_in_float(randomize):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.conv(x) if x.sum() > 0 else x

    model = nn.Sequential(*conv_norm(3, 6), nn.ReLU(), Whole(), nn.Flatten(), nn.Linear(6 * 144, 3))
    with pytest.raises(CaptureError, match=r"keep its module whole and in float with leaf_modules=\(TheClass,\)"):
        qat.prepare(model, batch())
    prepared = qat.prepare(randomize(model), batch(), leaf_modules=(Whole,))
    assert_is_the_float_model(prepared, model, (4, 3, 12, 12))
    assert "whole" in {op.kind for op in prepared.plan.in_float}


# errors


def test_a_branch_on_a_value_names_the_line():
    class Branches(Base):
        def forward(self, x):
            x = self.conv1(x)
            if x.mean() > 0:  # the line
                x = -x
            return self.head(x)

    line = Branches.forward.__code__.co_firstlineno + 2
    with pytest.raises(CaptureError, match=rf"Branches cannot be traced at .*test_prepare\.py:{line}: if x\.mean"):
        qat.prepare(Branches(), batch())


def test_wrong_example_inputs_name_the_shape():
    with pytest.raises(CaptureError, match=r"SharedReLU rejects example inputs of shape \(2, 4, 12, 12\)"):
        qat.prepare(SharedReLU(), torch.randn(2, 4, 12, 12))
    with pytest.raises(CaptureError, match=r"cannot be called with 2 positional inputs and keywords \[\]"):
        qat.prepare(SharedReLU(), (batch(), batch()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_named(value):
    model = SharedReLU()
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = value
        model.norm1.running_var[1] = value
    with pytest.raises(NumericsError, match=r"NaN or Inf in conv2\.weight, norm1\.running_var before"):
        qat.prepare(model, batch())


def test_preparing_twice():
    prepared = qat.prepare(SharedReLU(), batch())
    with pytest.raises(PlacementError, match="already prepared; prepare the float model again"):
        qat.prepare(prepared, batch())


def test_nothing_to_quantize():
    with pytest.raises(PlacementError, match="nothing to quantize in Sequential: no convolution, linear layer"):
        qat.prepare(nn.Sequential(nn.Tanh()), torch.randn(2, 3))
    with pytest.raises(PlacementError, match="nothing to quantize in SharedReLU"):
        qat.prepare(SharedReLU(), batch(), exclude=["*"])


def test_an_attribute_with_a_quantizers_name():
    model = SharedReLU()
    model.fc.output_quantizer = nn.Identity()
    with pytest.raises(PlacementError, match=r"already has an attribute 'fc\.output_quantizer'; rename it"):
        qat.prepare(model, batch())


def test_unknown_recipe_and_target():
    with pytest.raises(ConfigError, match="unknown recipe 'w8'"):
        qat.prepare(SharedReLU(), batch(), "w8")
    with pytest.raises(ConfigError, match="unknown target 'tpu'"):
        qat.prepare(SharedReLU(), batch(), target="tpu")


# other recipes


@pytest.mark.parametrize("recipe", qat.presets.preset_names("quant"))
def test_every_recipe_trains(recipe, small_net, images):
    """A few steps of SGD fit 16 labels better than none, with fake quantization on."""
    prepared = qat.prepare(small_net, images, recipe).train()
    qat.calibrate(prepared, [images])
    labels = torch.arange(16) % 5
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = F.cross_entropy(prepared(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0]


def test_training_under_autocast(small_net, images):
    prepared = qat.prepare(small_net, images).train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(prepared(images).float(), torch.arange(16) % 5)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in prepared.parameters())
    assert all(q.scale.dtype is torch.float32 for q in qat.quantizers(prepared).values())


def test_what_was_not_captured_is_said_to_be_on_the_float_model(small_net, images):
    prepared = qat.prepare(small_net, images[:2])
    with pytest.raises(AttributeError, match=r"the prepared model has no 'forward_features': .* ask the float model"):
        prepared.forward_features(images)
    assert not hasattr(prepared, "forward_features")
    assert hasattr(copy.deepcopy(prepared), "plan")
