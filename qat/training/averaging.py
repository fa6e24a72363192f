"""Averaged weights of a fake-quant network: what is validated, saved and delivered is the average, not the last step.

    weights, trained ranges       averaged (functional/averaging.py)
    BatchNorm's statistics        averaged with the same shares, so that they are those of averaged weights
    ranges of weights             observed from the averaged weight while ranges move; then as they were frozen
    ranges of activations         the current ones, which are moving averages themselves

An average of scales would belong to no weight, and one of zero points to no grid.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qat.errors import ConfigError
from qat.functional.averaging import blend_, share_kept
from qat.placement.held import prepared_networks
from qat.placement.seen import seen_weights
from qat.training.finishing import Finishing
from qat.training.oscillation import OscillationControl
from qat.training.preparation import prepare_before_setup
from qat.training.processes import alike


class AveragedWeights(Finishing, WeightAveraging):
    """An exponential moving average of the weights; stands behind `QuantizationAwareTraining` in a Trainer's callbacks.

    Args:
        decay: share of the average that a step keeps, in (0, 1); the first steps keep less.

    Raises:
        ConfigError: a value out of range; when `fit` starts, no prepared network, or weights that are to be frozen.
    """

    def __init__(self, *, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"need 0 < ema.decay < 1, got {decay}; 0.999 averages some 1,000 steps")
        self.decay = decay

        def average(averaged: Any, current: Any, averages: Any) -> None:
            blend_(averaged, current, share_kept(int(averages), decay))

        super().__init__(use_buffers=False, multi_avg_fn=average)
        self._delivered = False  # whether the module holds the average by now
        self._swapped = False  # whether it does for a validation, and the average holds its weights
        self._moved = False  # whether the average has moved since its ranges were settled; one that was loaded has not

    @property
    def average(self) -> nn.Module:
        """The averaged LightningModule, during `fit`."""
        assert self._average_model is not None
        return self._average_model.module

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin the average, of the network that was prepared."""
        if stage != "fit":
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, OscillationControl):
                require_no_freezing(callback)
        self._latest_update_step = 0  # as after an earlier fit
        self._delivered = self._swapped = self._moved = False
        prepare_before_setup(pl_module)  # Lightning's copies the module
        super().setup(trainer, pl_module, stage)
        for name in ("teacher", "features"):  # of a Classifier, and copied with it
            self.average.__dict__.pop(name, None)
        if not prepared_networks(self.average):
            raise ConfigError(
                f"{type(pl_module).__name__} has no prepared network to average; AveragedWeights stands behind "
                "QuantizationAwareTraining in callbacks"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin where calibration has ended, on the device of the module."""
        assert self._average_model is not None
        self._average_model.to(pl_module.device)
        if not self._average_model.n_averaged:
            self.average.load_state_dict(pl_module.state_dict())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average after a step of the optimizer, the statistics of BatchNorm too."""
        if trainer.global_step == self._latest_update_step:  # gradients accumulate
            return
        average = self._average_model
        assert average is not None
        averages, kept = int(average.n_averaged), [s.clone() for s in _statistics(self.average)]
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._moved = True
        if not averages:  # the first one is the weights themselves
            return
        blend_(kept, _statistics(pl_module), share_kept(averages, self.decay))
        for statistic, value in zip(_statistics(self.average), kept, strict=True):
            statistic.copy_(value)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average."""
        if self._average_model is not None:
            alike([pl_module])  # DDP does so before the first batch, which reads the average, and not behind validation
            self._settle(pl_module)
            self._swapped = True
        super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Train on with the current weights."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._swapped = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the average as the module's state, and beside it what training goes on from."""
        if not self._swapped:
            self._settle(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:  # stopped in a validation
            now = checkpoint["current_model_state"]
            checkpoint["current_model_state"], checkpoint["state_dict"] = checkpoint["state_dict"], now

    def finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the module, the same in every process."""
        if self._delivered:
            return
        self._settle(pl_module)  # ranges that a checkpoint brought are settled already
        WeightAveraging.on_train_end(self, trainer, pl_module)  # copies it there
        alike([pl_module])
        self._delivered = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the average; the module has it."""
        if stage == "fit":
            self._average_model = None

    @torch.no_grad()
    def _settle(self, pl_module: pl.LightningModule) -> None:
        """Ranges of the averaged weights; the next step of the average overwrites them."""
        average: AveragedModel | None = self._average_model
        if average is None or not self._moved:
            return
        self._moved = False
        for name, network in prepared_networks(average.module).items():
            current = seen_weights(prepared_networks(pl_module)[name])
            for layer, weight in seen_weights(network).items():
                if current[layer].quantizer.observing and not weight.quantizer.trained:
                    weight.quantizer.reset()
                    weight.quantizer.observe(weight.seen())


def require_no_freezing(control: OscillationControl) -> None:
    """Raise `ConfigError` where weights are to be frozen that an average would move again."""
    if control.freeze is not None:
        raise ConfigError(
            "ema averages weights, and oscillation.freeze holds them on an integer that the average then leaves; give "
            "oscillation.damp instead, or leave one of them out"
        )


def _statistics(module: nn.Module) -> list[Tensor]:
    """Running means and variances of BatchNorm, wherever they are."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
