from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

import qat
from qat.layers.frozen import FakeQuantFrozenNorm2d, FrozenNorm2d

ROUNDING = 1e-6  # of the largest output: x f + (b - m f) against (x - m) f + b
BUFFERS = ("weight", "bias", "running_mean", "running_var")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), FrozenBatchNorm2d(8)
        self.second, self.last = nn.Conv2d(8, 8, 3), FrozenBatchNorm2d(8)
        self.fc = nn.Linear(8, 4)
        for norm in (self.norm, self.last):
            norm.weight.uniform_(-1.5, 1.5)
            norm.bias.uniform_(-0.3, 0.3)
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.3, 2.0)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.fc(F.relu(self.last(self.second(x)) + x[..., 1:-1, 1:-1]).mean((2, 3)))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(8, 3, 12, 12)


@pytest.fixture
def prepared(images) -> qat.PreparedModel:
    ready = qat.prepare(Net(), images)
    qat.calibrate(ready, [images])
    return ready


def test_it_folds_like_a_batchnorm(prepared):
    assert isinstance(prepared.norm, FakeQuantFrozenNorm2d)
    assert isinstance(prepared.last, FrozenNorm2d)
    assert [op.fused[0] for op in prepared.plan.ops if "conv2d" in op.kind] == ["batchnorm norm", "batchnorm last"]
    assert not [op for op in prepared.plan.in_float if op.macs or "norm" in op.kind]
    assert prepared.plan.int8_mac_share == 1.0


def test_with_fake_quant_off_it_is_the_float_model_in_both_modes(images):
    model = Net()
    prepared = qat.prepare(model, images)
    qat.fake_quant(prepared, enabled=False)
    for mode in (False, True, False, True):
        y, reference = prepared.train(mode)(images), model.train(mode)(images)
        assert (y - reference).abs().max() <= ROUNDING * reference.abs().max()


def test_training_leaves_it_as_it_is_and_its_quantizer_learns(prepared, images):
    before = copy.deepcopy(prepared.norm)
    prepared.train()
    assert (prepared.norm.training, prepared.norm.output_quantizer.training) == (False, True)
    prepared(3 * images).square().sum().backward()
    assert {name for name, _ in prepared.named_parameters()} == {name for name, _ in Net().named_parameters()}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
    assert all(torch.equal(getattr(prepared.norm, name), getattr(before, name)) for name in BUFFERS)
    assert prepared.norm.output_quantizer.scale != before.output_quantizer.scale


def test_checkpoints_of_both_kinds_load(prepared):
    model = Net()
    state = model.state_dict()
    assert set(state) <= set(prepared.state_dict())
    counted = state | {"norm.num_batches_tracked": torch.tensor(3)}  # of the same net with BatchNorm
    for checkpoint in (state, counted):
        found = prepared.load_state_dict(checkpoint, strict=False)
        assert found.unexpected_keys == []
        assert all("quantizer" in key for key in found.missing_keys)
    assert torch.equal(prepared.last.running_var, model.last.running_var)


def test_statistics_are_not_estimated_again(prepared, images):
    mean = prepared.norm.running_mean.clone()
    assert qat.reestimate_batchnorm(prepared, [images]) == 1
    assert torch.equal(prepared.norm.running_mean, mean)


@pytest.mark.runtime
def test_the_artefact_is_the_model(prepared, images, tmp_path):
    artifact = qat.export(qat.convert(prepared.eval()), tmp_path / "model.onnx")
    report = qat.verify(prepared, artifact, [images])
    assert max(stage.max_steps for stage in report.stages[2:]) <= 1.0
