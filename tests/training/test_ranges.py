"""Scales and histograms arrive in TensorBoard's files."""

from __future__ import annotations

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from qat.training import Classifier, QuantizationAwareTraining
from qat.training.ranges import RangeLogger

TINY = 1e-5  # TensorBoard keeps float32


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*", "ignore::DeprecationWarning:google.*")
def test_scales_and_histograms_are_logged_at_every_validation(small_net, images, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loader = DataLoader(TensorDataset(images, torch.arange(16) % 5), batch_size=8)
    module = Classifier(small_net.train(), num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.01))
    loggers = [TensorBoardLogger(tmp_path, name="tb", version=""), CSVLogger(tmp_path, name="csv", version="")]
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=loggers, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[QuantizationAwareTraining(), RangeLogger()], log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, loader, loader)
    found = accumulator.EventAccumulator(str(tmp_path / "tb"), {"histograms": 0}).Reload()
    assert [event.step for event in found.Histograms("weights/stem")] == [2, 4]
    top = found.Histograms("integers/stem")[-1].histogram_value
    assert -63 <= top.min <= top.max <= 63  # 7 bits, narrow
    assert "scale/stem.weight_quantizer" in found.Tags()["scalars"]
    assert "scale/" not in (tmp_path / "csv" / "metrics.csv").read_text()
    activations = {name.removeprefix("activations/") for name in found.Tags()["histograms"] if name[:3] == "act"}
    scales = {name.removeprefix("scale/") for name in found.Tags()["scalars"] if name.startswith("scale/")}
    assert activations == {name for name in scales if not name.endswith("weight_quantizer")}
    for name in activations:  # what left a quantizer lies on its grid
        low, high = (found.Scalars(f"{end}/{name}")[-1].value for end in ("low", "high"))
        values = found.Histograms(f"activations/{name}")[-1].histogram_value
        assert low - TINY <= values.min <= values.max <= high + TINY
    for name in scales - activations:
        assert found.Scalars(f"low/{name}")[-1].value == -found.Scalars(f"high/{name}")[-1].value
