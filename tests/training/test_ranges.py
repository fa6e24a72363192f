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
