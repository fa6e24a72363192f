from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.quantizers import FakeQuantize
from qat.runtime import load

X = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ROUNDED_ONCE_MORE = 1e-6  # x * sigmoid(x) rounds between its factors, torch's SiLU need not


class Net(nn.Module):
    """Two convolutions with an activation between them, as a module or as a function."""

    def __init__(self, activation: nn.Module | None = None, function=None) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)
        self.act, self.function = activation or nn.Identity(), function or (lambda x: x)

    def forward(self, x):
        return self.last(self.function(self.act(self.norm(self.first(x)))))


def prepared(model: nn.Module, target: str = "onnxruntime", **keywords) -> qat.PreparedModel:
    torch.manual_seed(0)
    return qat.prepare(model.eval(), X[:2], "w8a8", target, **keywords)


def kinds(model: qat.PreparedModel) -> list[str]:
    modules = dict(model.named_modules())
    return [
        type(modules[str(node.target)]).__name__ if node.op == "call_module" else node.target.__name__
        for node in model.graphs[False].nodes
        if node.op in ("call_module", "call_function")
    ]


@pytest.mark.parametrize(
    ("model", "gate"),
    [
        (Net(nn.SiLU(inplace=True)), "sigmoid"),
        (Net(function=F.silu), "sigmoid"),
        (Net(nn.Hardswish()), "unclamped_hardsigmoid"),
        (Net(function=lambda x: F.hardswish(x, inplace=True)), "unclamped_hardsigmoid"),
    ],
)
def test_gate_and_product_are_quantized(model, gate):
    found = prepared(model)
    assert gate in kinds(found)
    assert "mul" in kinds(found)
    assert not {"SiLU", "silu", "Hardswish", "hardswish"} & set(kinds(found))
    qat.calibrate(found, [X])
    qat.fake_quant(found, enabled=False)
    torch.testing.assert_close(found(X), model(X), rtol=0, atol=ROUNDED_ONCE_MORE)


@pytest.mark.runtime
@pytest.mark.parametrize(("activation", "in_float"), [(nn.SiLU(), []), (nn.Hardswish(), []), (nn.Hardsigmoid(), [])])
def test_onnxruntime_multiplies_integers(tmp_path, activation, in_float):
    model = prepared(Net(activation))
    qat.calibrate(model, [X])
    artifact = qat.export(qat.convert(model), tmp_path / "net.onnx")
    assert qat.verify(model, artifact, [X]).passed
    runtime = load(artifact, threads=1)
    coverage = runtime.coverage()
    assert [operator.op for operator in coverage.in_float] == in_float
    torch.testing.assert_close(runtime(X), model(X), rtol=0, atol=0)


@pytest.mark.parametrize("target", ["openvino", "executorch", "inductor", "tensorrt", "torch"])
def test_runtimes_with_a_kernel_for_the_whole_get_the_whole(target):
    assert "SiLU" in kinds(prepared(Net(nn.SiLU()), target))


def test_what_is_in_float_anyway_stays_whole():
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm, self.act, self.out = nn.Linear(16, 8), nn.LayerNorm(8), nn.SiLU(), nn.Linear(8, 4)

        def forward(self, x):
            return self.out(self.act(self.norm(self.fc(x))))

    assert "SiLU" in kinds(prepared(Normed()))
    assert "SiLU" in kinds(prepared(Net(nn.SiLU()), leaf_modules=(nn.SiLU,)))


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid()])
def test_what_is_excluded_stays_whole(activation):
    found = prepared(Net(activation), exclude=["act"])
    quantizers = [n for n, m in found.named_modules() if n.startswith("act.") and isinstance(m, FakeQuantize)]
    assert quantizers == ["act.output_quantizer"]  # what the convolution behind it reads
    assert [(op.name, op.why) for op in found.plan.in_float] == [("act", "excluded by 'act'")]


def test_a_grid_that_does_not_clamp_leaves_hardsigmoid_whole():
    for activation, gate in ((nn.Hardswish(), "hardsigmoid"), (nn.Hardsigmoid(), "Hardsigmoid")):
        model = qat.prepare(Net(activation).eval(), X[:2], "w8a8_symmetric")
        assert gate in kinds(model)
        assert "unclamped_hardsigmoid" not in kinds(model)


def test_the_plan_names_hardsigmoid():
    line = next(op for op in prepared(Net(nn.Hardsigmoid())).plan.ops if op.name == "act.hardsigmoid")
    assert (line.integer, line.kind, line.fused) == (True, "unclamped_hardsigmoid", ("hardtanh[0,1]",))


def test_a_model_with_constants_of_its_own():
    class Constants(Net):
        def __init__(self) -> None:
            super().__init__(nn.Hardswish())
            self.register_buffer("constants", torch.rand(4, 1, 1))

        def forward(self, x):
            return super().forward(x) + self.constants

    model = prepared(Constants())
    qat.calibrate(model, [X])
    torch.testing.assert_close(qat.convert(model)(X), model(X), rtol=0, atol=ROUNDED_ONCE_MORE)


def test_gradients_are_those_of_the_whole():
    model = Net(nn.SiLU())
    found = prepared(model)
    qat.calibrate(found, [X])
    qat.fake_quant(found, enabled=False)
    for net in (model, found):
        net.zero_grad()
        net(X).square().sum().backward()
    torch.testing.assert_close(found.first.weight.grad, model.first.weight.grad, rtol=1e-4, atol=1e-4)
