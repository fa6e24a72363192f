from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qat
from qat.errors import CaptureError, ConfigError, PlacementError
from qat.placement.modules import PreparedModules

STEPS = 0.02  # of the output: a value at a tie rounds the other way in a layer or two of this net


class Branching(nn.Module):
    """Looks at values, so that it cannot be traced; one layer called twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.never = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        if x.mean() > 100:
            x = self.never(x)
        for _ in range(2):
            x = F.relu(self.twice(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def model(randomize) -> nn.Module:
    return randomize(Branching()).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 10, 10)


@pytest.fixture
def prepared(model, images) -> qat.PreparedModel:
    ready = qat.prepare(model, images, placement="modules")
    qat.calibrate(ready, [images])
    return ready


def test_the_graph_cannot_and_says_what_can(model, images):
    with pytest.raises(CaptureError, match=r"test_modules.py:\d+: if x.mean\(\) > 100(.|\n)*placement=modules"):
        qat.prepare(model, images)


def test_with_fake_quant_off_it_is_the_float_model_in_both_modes(model, images, prepared):
    qat.fake_quant(prepared, enabled=False)
    twin = copy.deepcopy(model)
    for mode in (False, True, False, True):
        assert torch.equal(prepared.train(mode)(images), twin.train(mode)(images))


def test_names_are_those_of_the_float_model(model, prepared):
    assert set(model.state_dict()) <= set(prepared.state_dict())
    assert isinstance(prepared, PreparedModules)
    assert type(prepared.never) is nn.Conv2d


def test_the_plan_says_what_is_float_and_why(prepared):
    ops = {op.name: op for op in prepared.plan.ops}
    assert {name for name, op in ops.items() if op.integer} == {"stem", "twice", "fc"}
    assert ops["never"].why == "the example inputs do not reach it"
    assert ops["norm"].why.startswith("placement=modules")
    assert ops["twice"].macs == 2 * 6 * 100 * 27
    assert prepared.plan.int8_mac_share == 1.0


def test_it_trains_copies_and_pickles(images, prepared):
    prepared.train()
    twins = [copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))]
    y = prepared(images)
    y.square().mean().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for n, p in prepared.named_parameters() if "never" not in n
    )
    for twin in twins:
        assert torch.equal(twin(images), y)
        twin.fc.weight.data.zero_()
    assert torch.equal(prepared.eval()(images), prepared(images))
    assert prepared.fc.weight.any()


def test_integer_model_computes_the_same(images, prepared):
    integer = qat.convert(prepared.eval())
    assert integer.fc.weight.dtype is torch.int8
    with torch.no_grad():
        y, reference = integer(images), prepared(images)
    assert (y - reference).abs().max() <= STEPS * reference.abs().max()


class Traceable(Branching):
    """As `torch.export` wants it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.twice(F.relu(self.norm(self.stem(x))))).mean((2, 3)))


@pytest.mark.runtime
def test_it_exports_where_torch_export_allows(randomize, images, tmp_path):
    model = randomize(Traceable()).eval()
    prepared = qat.prepare(model, images, placement="modules").eval()
    qat.calibrate(prepared, [images])
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    report = qat.verify(prepared, artifact, [images, images[:3]], float_model=model)
    assert report.stages[-1].agreement == 100.0


def test_a_branch_on_values_does_not_export(prepared, tmp_path):
    with pytest.raises(qat.errors.ExportError, match=r"data-dependent|branch"):
        qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_bad_arguments(model, images):
    with pytest.raises(ConfigError, match="unknown placement 'layers'"):
        qat.prepare(model, images, placement="layers")
    with pytest.raises(PlacementError, match=r"match no operator of the model:\n  'stemm'"):
        qat.prepare(model, images, placement="modules", exclude=["stemm"])
    with pytest.raises(PlacementError, match="nothing to quantize in Branching"):
        qat.prepare(model, images, placement="modules", exclude=["*"])
    with pytest.raises(CaptureError, match=r"rejects example inputs of shape \(2, 4, 10, 10\)"):
        qat.prepare(model, torch.randn(2, 4, 10, 10), placement="modules")
    with pytest.raises(PlacementError, match="w4a4_lsq gives operators bits of their own"):
        qat.prepare(model, images, "w4a4_lsq", placement="modules")


@pytest.mark.parametrize("mode", ["reflect", "circular", "replicate"])
def test_padding_of_any_mode_arrives_in_the_integers(images, mode):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    prepared = qat.prepare(net, images[:2], placement="modules")
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared.eval())
    rounding = 1e-4  # the same products in another order
    assert (integer(images) - prepared(images)).abs().max() < rounding
