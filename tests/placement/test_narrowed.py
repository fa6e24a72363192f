"""Values that sums and products read: wide for the sum, narrowed for the product, and the same integers everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qat
from qat.errors import ConfigError
from qat.runtime import load

A_STEP = 1.001  # of the output: single integers differ, by ties in torch; in OpenVINO, not traced to a node
X = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Two blocks; the second reads the stream behind a pooling, by two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.a(x) + x)
        x = self.drop(F.relu(self.b(x))) + x
        y = F.max_pool2d(x, 2)
        return self.head((F.relu(self.c(y)) + F.relu(self.d(y)) + F.avg_pool2d(x, 2)).mean((2, 3)))


class Dense(nn.Module):
    """What a layer reads, later layers read again, in one concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([x, F.relu(self.a(x))], 1)
        return self.head(torch.cat([x, F.relu(self.b(x))], 1)).mean((2, 3))


def recipe(bits: int = 2, **changes: Any) -> qat.QuantRecipe:
    base = qat.presets.load_preset("quant", "w4a8_lsq")
    widths = {which: {**base[which], "bits": bits} for which in ("weight", "activation")}
    return qat.QuantRecipe.parse({**base, **widths, "wide_residuals": True, **changes})


def prepared(model: nn.Module, recipe: qat.QuantRecipe, target: str = "onnxruntime") -> qat.PreparedModel:
    torch.manual_seed(0)
    found = qat.prepare(model.eval(), X[:2], recipe, target)
    qat.calibrate(found, [X])
    return found.eval()


def outputs(model: qat.PreparedModel) -> dict[str, str | None]:
    return {op.name: op.output for op in model.plan.ops}


def test_each_reader_has_its_width() -> None:
    found = outputs(prepared(Residual(), recipe()))
    assert found == {
        "x": "uint8",
        "stem": "uint8",  # into the first sum
        "stem_narrowed": "uint2",  # into a
        "a": "uint8",
        "add": "uint8",
        "add_narrowed": "uint2",  # into b
        "b": "uint8",
        "drop": None,
        "add_2": "uint8",
        "max_pool2d": None,
        "max_pool2d_narrowed": "uint2",  # one for both, behind what moves it
        "c": "uint8",
        "d": "uint8",
        "add_3": "uint8",
        "avg_pool2d": "uint8",
        "add_4": "uint8",
        "mean": "uint8",
        "head": "uint8",
    }


def test_concatenations_are_sums_too() -> None:
    found = outputs(prepared(Dense(), recipe()))
    assert {name for name, output in found.items() if output == "uint2"} == {"stem_narrowed", "cat_narrowed"}
    assert {found["cat"], found["cat_2"]} == {"uint8"}


def test_without_it_a_value_has_one_width() -> None:
    found = outputs(prepared(Residual(), recipe(wide_residuals=False)))
    assert not any("narrowed" in name for name in found)
    assert found["add"] == found["stem"] == "uint2"


def test_the_product_reads_the_sum_of_eight_bits_on_its_own_grid() -> None:
    model = prepared(Residual(), recipe())
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name in ("add_quantizer", "add_narrowed_quantizer"):
        keep = lambda _, x, y, name=name: seen.__setitem__(name, (x[0], y))  # noqa: E731
        model.get_submodule(name).register_forward_hook(keep)
    model.b.register_forward_pre_hook(lambda _, x: seen.__setitem__("b", (x[0], x[0])))
    with torch.no_grad():
        model(X)
    wide, narrow = seen["add_quantizer"][1], seen["add_narrowed_quantizer"]
    assert torch.equal(narrow[0], wide)
    step = float(model.add_narrowed_quantizer.scale.detach())
    assert torch.equal(narrow[1], (wide / step).round().clamp(0, 3) * step)
    assert torch.equal(seen["b"][0], narrow[1])
    assert len(wide.unique()) > 4 >= len(narrow[1].unique())


def off_ties(model: qat.PreparedModel) -> qat.PreparedModel:
    """Move the narrow grids as one step of training does: calibrated, both grids of a value end at the same edge."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "narrowed" in name:
                parameter.mul_(1.001)
    return model


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("model", [Residual, Dense])
def test_runtimes_have_the_same_integers(model: type[nn.Module], bits: int, tmp_path: Any) -> None:
    found = off_ties(prepared(model(), recipe(bits)))
    integer = qat.convert(found)
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(integer(x), found(x))
    artifact = qat.export(integer, tmp_path / "model.onnx")
    report = qat.verify(found, artifact, [x])
    stages = {s.name.partition(", ")[2] or s.name: (s.agreement, s.max_steps) for s in report.stages if s.gated}
    in_float = stages.pop("optimizations off")  # float sums; a step with AVX2, not traced to a node
    assert in_float[0] == 100.0
    assert in_float[1] <= A_STEP
    assert set(stages.values()) == {(100.0, 0.0)}
    assert not load(artifact).coverage().in_float


def test_ties_between_two_grids_are_divided_in_training_and_in_onnxruntime(tmp_path: Any) -> None:
    """34 wide steps are 3 narrow ones: 17 steps lie on a tie, which torch's own operator, x * (1 / s), may miss."""
    found = prepared(Dense(), recipe(4))
    wide, narrow = torch.tensor(0.010415102355182171), torch.tensor(0.11803782731294632)
    with torch.no_grad():
        found.get_submodule("stem.output_quantizer").scale.fill_(wide)
        found.stem_narrowed_quantizer.scale.fill_(narrow)
    integers = torch.arange(256) * wide
    depart = (integers / narrow).round() != (integers * (1 / narrow)).round()
    assert depart.nonzero().flatten().tolist() == [51, 255]  # 4.5 and 22.5, against 4.5000005 and 22.500002
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    report = qat.verify(found, qat.export(qat.convert(found), tmp_path / "model.onnx"), [x])
    steps = {s.name: s.max_steps for s in report.stages if s.gated}
    assert {v for name, v in steps.items() if name.startswith("onnxruntime")} == {0.0}
    assert steps["integer reference (torch)"] <= A_STEP  # whether a value of these lies there depends on the CPU's sums
    operator = torch.ops.quantized_decomposed.quantize_per_tensor.default
    q = operator(integers, float(narrow), 0, 0, 255, torch.uint8)
    assert (q != (integers / narrow).round()).nonzero().flatten().tolist() == [51, 255]


@pytest.mark.parametrize(("target", "steps"), [("torch", 0.0), ("openvino", A_STEP)])
def test_other_targets(target: str, steps: float, tmp_path: Any) -> None:
    found = prepared(Residual(), recipe(3), target)
    name = tmp_path / f"model{found.target.artifact}"
    report = qat.verify(found, qat.export(qat.convert(found), name), [X])
    assert all(s.agreement == 100.0 and s.max_steps <= steps for s in report.stages if s.gated)


def test_both_modes_share_the_quantizers() -> None:
    model = prepared(Residual(), recipe())
    both = [
        {str(n.target) for n in graph.nodes if n.op == "call_module" and "narrowed" in str(n.target)}
        for graph in model.graphs.values()
    ]
    assert both[0] == both[-1] == {
        "stem_narrowed_quantizer", "add_narrowed_quantizer", "max_pool2d_narrowed_quantizer"
    }  # fmt: skip


def test_steps_of_both_grids_are_trained() -> None:
    model = prepared(Residual(), recipe()).train()
    F.cross_entropy(model(X), torch.arange(16) % 4).backward()
    for name in ("add_quantizer", "add_narrowed_quantizer"):
        assert all(float(p.grad.abs().sum()) > 0 for p in model.get_submodule(name).parameters())


def test_a_first_layer_as_wide_as_the_sums_reads_the_value_itself() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x) + x)

    assert not any("narrowed" in name for name in outputs(prepared(Skip(), recipe())))
    assert outputs(prepared(Skip(), recipe(first_last_bits=None)))["x_narrowed"] == "uint2"


def test_nothing_is_narrowed_to_the_same_width() -> None:
    assert not any("narrowed" in name for name in outputs(prepared(Residual(), recipe(8))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sum_bits": None}, "residuals at sum_bits, and that is null: set sum_bits=8"),
        ({"wide_residuals": "yes"}, "need wide_residuals=true or false, got 'yes'"),
    ],
)
def test_bad_values(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)
