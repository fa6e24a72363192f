"""Ranges and histograms of every quantizer, into the loggers of a Trainer at each validation.

any logger      scale/NAME, the mean scale; low/NAME and high/NAME, the ends of the grid, of the widest channel
TensorBoard     weights/NAME, integers/NAME and activations/NAME as histograms besides; the last are results on their
                grid over the first batch of validation, where values beyond it stand at its ends
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qat.layers import FakeQuantWeight
from qat.placement.held import prepared_networks
from qat.placement.prepared import PreparedModel, quantizers
from qat.quantizers import FakeQuantize

VALUES = 100_000  # of an activation in a histogram


class RangeLogger(pl.Callback):
    """Logs what quantizers do; nothing where nothing is prepared. Into CSV no ranges go: its columns are fixed."""

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._activations: dict[str, Tensor] = {}

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the results of the first batch, where a logger takes histograms."""
        wanted = any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers)
        if trainer.sanity_checking or batch_idx or not wanted or not trainer.is_global_zero:
            return
        for prepared in prepared_networks(pl_module).values():
            for name, module in _results(prepared).items():
                self._hooks.append(module.register_forward_hook(self._kept(name)))

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Look no longer."""
        while self._hooks:
            self._hooks.pop().remove()

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log after every validation of training."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for prepared in prepared_networks(pl_module).values():
            ranges = _ranges(prepared)
            for logger in trainer.loggers:
                if not isinstance(logger, CSVLogger):
                    logger.log_metrics(ranges, step=trainer.global_step)
                if isinstance(logger, TensorBoardLogger):
                    _histograms(logger, prepared, trainer.global_step)
                    for name, values in self._activations.items():
                        logger.experiment.add_histogram(f"activations/{name}", values, trainer.global_step)
        self._activations.clear()

    def _kept(self, name: str) -> Any:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                values = output.detach().flatten()
                self._activations[name] = values[:: -(-len(values) // VALUES)].float().cpu()

        return keep


def _results(prepared: PreparedModel) -> dict[str, nn.Module]:
    """By the path of its quantizer, the module that returns each activation on its grid."""
    modules = dict(prepared.named_modules())
    weights = {layer.weight_quantizer for layer in modules.values() if isinstance(layer, FakeQuantWeight)}
    found: dict[str, nn.Module] = {}
    for path, quantizer in quantizers(prepared).items():
        owner = modules[path.rpartition(".")[0]]
        if quantizer not in weights:  # BatchNorm computes its own as one with what it normalizes
            found[path] = owner if isinstance(owner, nn.modules.batchnorm._BatchNorm) else quantizer
    return found


def _ranges(prepared: PreparedModel) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, quantizer in quantizers(prepared).items():
        low, high = _ends(quantizer)
        found |= {f"scale/{name}": float(quantizer.scale.abs().mean()), f"low/{name}": low, f"high/{name}": high}
    return found


def _ends(quantizer: FakeQuantize) -> tuple[float, float]:
    scale, zero, spec = quantizer.scale.abs(), quantizer.zero_point, quantizer.spec
    return float((scale * (spec.qmin - zero)).min()), float((scale * (spec.qmax - zero)).max())


def _histograms(logger: TensorBoardLogger, prepared: PreparedModel, step: int) -> None:
    for name, layer in prepared.named_modules():
        if isinstance(layer, FakeQuantWeight):
            weight = layer.weight.detach().float()
            logger.experiment.add_histogram(f"weights/{name}", weight, step)
            logger.experiment.add_histogram(f"integers/{name}", layer.weight_quantizer.integers(weight), step)
