from __future__ import annotations

import copy
import os
import pickle
import shutil
from collections.abc import Iterator

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._dynamo.utils import counters

import qat
from qat.compile import compile_regions
from qat.functional import regional
from qat.functional.epilogue import Norm, Quant, norm_act_quant
from qat.functional.regional import loops, regional_norm_act_quant
from qat.functional.ste import IDENTITY, RELU, RELU6
from qat.observers import MovingAverage
from qat.quantizers import ObservedFakeQuantize
from qat.spec import IntSpec

needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")

# BatchNorm as alpha * x + beta, and sums in another order, change n in its last bits: a value at a tie may round the
# other way, by one step, and a gradient at the mask's edge may pass in one and not in the other
FLIPPED = 1e-3  # share of values that may
STATISTICS = 1e-5  # relative; float32 sums of up to 1,000 values in another order
GRADIENT = 1e-4  # relative to the largest gradient


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    """As on a machine without g++ and without an earlier compile on disk or in memory."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    loops.cache_clear()
    with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}):  # monkeypatch would delete the key when it undoes
        yield
    torch.compiler.reset()
    loops.cache_clear()


def prepared(small_net, images: Tensor) -> qat.PreparedModel:
    model = qat.prepare(small_net, images)
    qat.calibrate(model, [images])
    return model.train()


def step(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    y = model(images)
    y.square().mean().backward()
    return y.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_warns_and_computes_the_same(small_net, images):
    model = prepared(small_net, images)
    eager = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="needs a C\\+\\+ compiler"):
        assert not compile_regions(model)
    assert torch.equal(step(model, images)[0], step(eager, images)[0])


SHAPES = [(8, 8, 5, 5), (4, 6, 16), (6, 3, 4, 3, 2), (16, 32, 32, 32)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [IDENTITY, RELU, RELU6], ids=["identity", "relu", "relu6"])
@pytest.mark.parametrize(("training", "learning"), [(True, True), (True, False), (False, True), (False, False)])
def test_the_loops_equal_the_eager_function(shape, activation, training, learning):
    channels = shape[1]
    x, grad = torch.randn(shape) * 2 + 0.5, torch.randn(shape)
    weight, bias = torch.linspace(-1.5, 2.0, channels), torch.linspace(-1.0, 3.0, channels)
    results = []
    for function in (norm_act_quant, regional_norm_act_quant):
        quantizer = ObservedFakeQuantize(IntSpec(bits=8, signed=False), MovingAverage)
        quantizer.observe(torch.tensor([-3.0, 4.0]))
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        running = torch.zeros(channels), torch.ones(channels)
        y = function(
            leaves[0],
            Norm(leaves[1], leaves[2], *running, 0.1, 1e-3, training),
            activation,
            Quant(quantizer.scale, quantizer.zero_point, 0, 255),
            (lambda n, q=quantizer: q.observe(n, activation)) if learning else None,
        )
        y.backward(grad)
        results.append((y.detach(), [t.grad for t in leaves], running, quantizer.scale))
    (y, grads, stats, scale), (other, other_grads, other_stats, other_scale) = results
    torch.testing.assert_close(other_scale, scale, rtol=STATISTICS, atol=0)
    for ours, theirs in zip(other_stats, stats, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=STATISTICS, atol=STATISTICS)
    steps = (y / scale - other / other_scale).abs().round()
    assert steps.max() <= 1
    assert (steps > 0).float().mean() <= FLIPPED
    for ours, theirs in zip(other_grads, grads, strict=True):
        assert ((ours - theirs).abs() > GRADIENT * theirs.abs().max()).float().mean() <= FLIPPED


@needs_compiler
def test_one_compile_serves_all_shapes():
    loops.cache_clear()
    torch.compiler.reset()
    counters.clear()
    run = regional.loops("cpu")
    assert run is not None
    for n, c, s in [(8, 8, 25), (4, 6, 16), (16, 32, 1024), (2, 64, 64), (3, 3, 3)]:
        x, channel = torch.randn(n, c, s), torch.ones(c)
        with torch.no_grad():  # as inside an autograd function's forward; grad mode is a guard of its own
            run.sums(x, channel), run.sums_and_ends(x, channel), run.land(x, channel, channel, torch.ones(5))
    assert counters["stats"]["unique_graphs"] == len(run)


@needs_compiler
def test_a_compiled_model_trains_evaluates_copies_and_pickles(small_net, images):
    eager = prepared(small_net, images)
    model = copy.deepcopy(eager)
    assert compile_regions(model)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    y, grads = step(model, images)
    expected, expected_grads = step(eager, images)
    tolerance = 8 * eager.get_submodule("fc.output_quantizer").scale.item()  # a flipped step or two, through the net
    assert (y - expected).abs().max() <= tolerance
    assert grads.keys() == expected_grads.keys()
    for twin in twins:
        again, again_grads = step(twin, images)
        assert torch.equal(again, y)
        assert all(torch.equal(again_grads[name], grad) for name, grad in grads.items())
    before = copy.deepcopy(model.state_dict())
    with torch.inference_mode():
        assert torch.equal(model.eval()(images), twins[0].eval()(images))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not compile_regions(model, enabled=False)


@needs_compiler
def test_switched_off_again_it_is_the_eager_function_bit_for_bit(small_net, images):
    eager = prepared(small_net, images)
    model = copy.deepcopy(eager)
    compile_regions(model)
    assert not compile_regions(model, enabled=False)
    assert torch.equal(step(model, images)[0], step(eager, images)[0])


def test_torchs_own_compile_of_a_model_that_learns_ranges(small_net, images):
    """In training mode, observers and statistics included: what it traces writes into buffers, never anew."""
    eager = qat.prepare(small_net, images)
    qat.calibrate(eager, [images])
    traced = copy.deepcopy(eager)
    outputs = [model.train()(images) for model in (eager, torch.compile(traced, backend="eager"))]
    assert (outputs[0] != outputs[1]).float().mean() <= FLIPPED
    for name, quantizer in qat.quantizers(eager).items():
        other = qat.quantizers(traced)[name]
        torch.testing.assert_close(quantizer.scale, other.scale, rtol=STATISTICS, atol=0)
        assert getattr(quantizer.observer, "batches", 0) == getattr(other.observer, "batches", 0)
