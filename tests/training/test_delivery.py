"""What the callback's file guarantees: what it says of itself, its audit, and what is said before training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import qat
from qat.artifact import fingerprint
from qat.errors import ArtifactError, ConfigError
from qat.runtime import EXTRAS

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]

pytestmark = pytest.mark.runtime


def said(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_what_the_file_says_of_itself(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    """Of a resumed run too, whose module began with other weights."""
    module, path = stranger(), tmp_path / "model.onnx"
    began = fingerprint(module.model)
    callback = qat.QuantizationAwareTraining(export=path)
    fitted = trainer(callback)
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    about = said(path)
    assert about["float_sha256"] == began
    assert about["data"] == "TensorDataset"
    assert {"model", "recipe", "target", "fingerprint", "commit", "epochs"} < set(about)
    assert "torch" in json.loads(about["versions"])
    assert callback.report is not None
    assert about["top1"] == f"{callback.report.stage('fake-quant').top1:.2f}"

    resumed, callback = stranger(), qat.QuantizationAwareTraining(export=path, verify=False)
    trainer(callback, max_epochs=2).fit(resumed, loader, loader, ckpt_path=tmp_path / "last.ckpt")
    assert said(path)["float_sha256"] == began
    assert "top1" not in said(path)  # nothing was measured


def test_the_file_is_audited(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qat.training.delivery.describe", lambda trainer: {"commit": ""})
    with pytest.raises(ArtifactError, match=r"model\.onnx does not pass its audit: the metadata lacks commit"):
        trainer(qat.QuantizationAwareTraining(export=tmp_path / "model.onnx")).fit(stranger(), loader, loader)


@pytest.mark.parametrize(
    ("target", "name", "extra"),
    [("openvino", "model.xml", "openvino"), ("onnxruntime", "model.xml", "openvino"), ("torch", "m.pte", "executorch")],
)
def test_a_missing_package_is_told_before_training(
    trainer: Trainers,
    stranger: type,
    loader: Loader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    name: str,
    extra: str,
) -> None:
    monkeypatch.setitem(EXTRAS, extra, "a_package_that_is_not_there")
    module = stranger()
    with pytest.raises(ConfigError, match=rf"target {extra} needs the package `a_package_that_is_not_there`"):
        trainer(qat.QuantizationAwareTraining(target=target, export=tmp_path / name)).fit(module, loader, loader)
    assert not isinstance(module.model, qat.PreparedModel)


@pytest.mark.parametrize(("vnni", "warned"), [(False, True), (True, False)])
def test_a_cpu_that_saturates_is_told_before_training(
    trainer: Trainers,
    stranger: type,
    loader: Loader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    vnni: bool,
    warned: bool,
) -> None:
    old = {"name": "old", "isa": ["avx2"], "vnni": vnni, "arch": "x86_64"}
    monkeypatch.setattr("qat.machine.cpu", lambda: old)
    callback = qat.QuantizationAwareTraining(target="onnxruntime_vnni", export=tmp_path / "model.onnx", verify=False)
    with caplog.at_level(logging.WARNING, "qat"):
        trainer(callback).fit(stranger(), loader, loader)
    assert ("will not be exact on this machine: old has no VNNI" in caplog.text) is warned


def test_outputs_that_are_no_logits_have_no_top1(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path
) -> None:
    class Regression(stranger):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return (self(batch[0]).mean(1) - batch[1]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    floats = DataLoader(torch.utils.data.TensorDataset(images, labels.float()), batch_size=8)
    path = tmp_path / "model.onnx"
    callback = qat.QuantizationAwareTraining(export=path)
    trainer(callback).fit(Regression(), floats, floats)
    assert "top1" not in said(path)
