"""Ranges and histograms of every quantizer, into the loggers of a Trainer at each validation.

any logger      scale/NAME, the mean scale
TensorBoard     weights/NAME and integers/NAME as histograms besides
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from qat.layers import FakeQuantWeight
from qat.placement.prepared import PreparedModel, quantizers
from qat.training.own import prepared_networks


class RangeLogger(pl.Callback):
    """Logs what quantizers do; nothing where nothing is prepared. Into CSV no scales go: its columns are fixed."""

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log after every validation of training."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for prepared in prepared_networks(pl_module).values():
            scales = {f"scale/{name}": float(q.scale.abs().mean()) for name, q in quantizers(prepared).items()}
            for logger in trainer.loggers:
                if not isinstance(logger, CSVLogger):
                    logger.log_metrics(scales, step=trainer.global_step)
                if isinstance(logger, TensorBoardLogger):
                    _histograms(logger, prepared, trainer.global_step)


def _histograms(logger: TensorBoardLogger, prepared: PreparedModel, step: int) -> None:
    for name, layer in prepared.named_modules():
        if isinstance(layer, FakeQuantWeight):
            weight = layer.weight.detach().float()
            logger.experiment.add_histogram(f"weights/{name}", weight, step)
            logger.experiment.add_histogram(f"integers/{name}", layer.weight_quantizer.integers(weight), step)
