from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

import qat
from qat.checkpoint import load_prepared, save_prepared
from qat.errors import CheckpointError
from qat.models import load_float
from qat.training import Classifier, QuantizationAwareTraining

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net(small_net: nn.Module, randomize: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    """`net()`: a SmallNet with weights and statistics of its own."""

    def make() -> nn.Module:
        model = randomize(copy.deepcopy(small_net))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
        return model

    return make


@pytest.fixture
def prepared(net: Callable[[], nn.Module]) -> qat.PreparedModel:
    model = qat.prepare(net(), IMAGES)
    qat.calibrate(model, [IMAGES])
    return model.eval()


def other(net: Callable[[], nn.Module], **how: Any) -> qat.PreparedModel:
    return qat.prepare(net(), IMAGES, **how).eval()


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IMAGES)


@pytest.mark.parametrize("plain", [False, True])
def test_back_into_a_prepared_model(
    tmp_path: Path, net: Callable[[], nn.Module], prepared: qat.PreparedModel, plain: bool
) -> None:
    if plain:
        torch.save(prepared.state_dict(), tmp_path / "a.pt")
    else:
        assert save_prepared(prepared, tmp_path / "a.pt") == tmp_path / "a.pt"
    model = other(net)
    report = load_prepared(model, tmp_path / "a.pt")
    assert report.matched == report.total
    assert torch.equal(outputs(model), outputs(prepared))


def test_back_into_the_float_model(tmp_path: Path, net: Callable[[], nn.Module], prepared: qat.PreparedModel) -> None:
    save_prepared(prepared, tmp_path / "a.pt")
    model = net().eval()
    report = load_float(model, tmp_path / "a.pt")
    added = len(prepared.state_dict()) - len(model.state_dict())
    assert len(report.quantizers) == added
    assert f"; {added} of quantizers left out)" in str(report)
    qat.fake_quant(prepared, enabled=False)
    assert torch.equal(outputs(model), outputs(prepared))


def test_a_lightning_checkpoint(tmp_path: Path, net: Callable[[], nn.Module]) -> None:
    module = Classifier(net(), num_classes=5, optimizer=torch.optim.SGD)
    callback = QuantizationAwareTraining()
    callback.prepare(module, IMAGES)
    callback.calibrate(module, [(IMAGES, torch.zeros(4, dtype=torch.int64))])
    trainer = pl.Trainer(
        callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    model = other(net)
    assert load_prepared(model, tmp_path / "last.ckpt").kind == "Lightning checkpoint"
    assert torch.equal(outputs(model), outputs(module.model.eval()))
    assert "of quantizers left out" in str(load_float(net(), tmp_path / "last.ckpt"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"recipe": "w8a8_symmetric"},
            r"prepared differently from this SmallNet\n  settings: recipe\.name is w8a8 in the checkpoint and "
            r"w8a8_symmetric here, recipe\.activation\.scheme is affine .*\n  the tensors have the same names",
        ),
        (
            {"recipe": "w8a8_per_tensor"},
            r"settings: .*granularity is per_channel in the checkpoint and per_tensor here\n"
            r"  of another shape: 'stem\.weight_quantizer\.",
        ),
        (
            {"exclude": ["stem"]},
            r"SmallNet\n  only in the checkpoint: 'stem\.weight_quantizer\.scale'.*\nPrepare the float model with",
        ),
    ],
)
def test_prepared_differently(
    tmp_path: Path, net: Callable[[], nn.Module], prepared: qat.PreparedModel, how: dict[str, Any], message: str
) -> None:
    save_prepared(prepared, tmp_path / "a.pt")
    model = other(net, **how)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_prepared(model, tmp_path / "a.pt")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_float_checkpoint_has_no_ranges(tmp_path: Path, net: Callable[[], nn.Module]) -> None:
    torch.save(net().state_dict(), tmp_path / "float.pt")
    with pytest.raises(CheckpointError, match=r"holds a float model, without ranges; load it into the float m"):
        load_prepared(other(net), tmp_path / "float.pt")
