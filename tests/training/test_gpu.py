"""The callback on a GPU: what its CPU tests promise, where a loss scaler, other kernels and tensors on a device are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import qat

Loader = DataLoader[Any]
Trainers = Callable[..., pl.Trainer]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.runtime,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.fixture
def on_gpu(tmp_path: Path) -> Trainers:
    def build(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        kept: dict[str, Any] = {"max_epochs": 2, **quiet, **options}
        return pl.Trainer(**kept, callbacks=list(callbacks), accelerator="gpu", devices=1, default_root_dir=tmp_path)

    return build


@pytest.mark.parametrize("recipe", ["w8a8", "w4a8_lsq"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_trains_and_delivers(
    on_gpu: Trainers, stranger: type, loader: Loader, tmp_path: Path, precision: str, recipe: str
) -> None:
    module, callback = stranger(), qat.QuantizationAwareTraining(recipe=recipe, export=tmp_path / "model.onnx")
    before = module.model.conv.weight.detach().clone()
    on_gpu(callback, precision=precision).fit(module, loader, loader)
    assert all(q.scale.dtype is torch.float32 for q in qat.quantizers(module).values())
    assert not torch.equal(module.model.conv.weight.cpu(), before)
    assert callback.report is not None
    assert callback.report.passed
    assert callback.artifact is not None
    assert callback.artifact.metadata["top1"] == f"{callback.report.stage('fake-quant').top1:.2f}"


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_a_checkpoint_goes_on_and_loads(on_gpu: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    fitted, module, path = on_gpu(qat.QuantizationAwareTraining()), stranger(), tmp_path / "last.ckpt"
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(path)
    resumed = stranger()
    on_gpu(qat.QuantizationAwareTraining(), max_epochs=3).fit(resumed, loader, loader, ckpt_path=path)
    assert all(q.calibrated for q in qat.quantizers(resumed).values())
    floats = stranger.load_from_checkpoint(path, map_location="cpu")  # type: ignore[attr-defined]
    assert torch.equal(floats.model.conv.weight, module.model.conv.weight.cpu())


def test_deterministic(on_gpu: Trainers, stranger: type, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    states = []
    try:
        for _ in range(2):
            torch.manual_seed(5)
            module = stranger()
            on_gpu(qat.QuantizationAwareTraining(), deterministic=True).fit(module, loader, loader)
            states.append(module.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


def test_ranges_are_those_of_a_cpu(on_gpu: Trainers, trainer: Trainers, stranger: type, loader: Loader) -> None:
    """Of the same weights and batches: the input's to the last bit, those behind a convolution within its rounding."""
    scales = []
    for build in (trainer, on_gpu):
        torch.manual_seed(1)
        module = stranger()
        build(qat.QuantizationAwareTraining(), max_epochs=1, limit_train_batches=1).fit(module, loader, loader)
        scales.append({name: q.scale.cpu() for name, q in qat.quantizers(module).items()})
    here, there = scales
    assert here.keys() == there.keys()
    assert torch.equal(here["model.x_quantizer"], there["model.x_quantizer"])
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=1e-2, atol=0)  # TF32 rounds to 10 bits
