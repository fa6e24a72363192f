"""BatchNorm's statistics measured again when training ends (qat/reestimate.py), in the module and in its checkpoints.

module         plain averages over training batches, of all processes together
checkpoints    those of the last step get the same statistics; all else in them stays as it was

A checkpoint of an earlier step, such as the best of several, keeps the running averages that it was validated with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn

from qat.errors import ConfigError
from qat.functional.across import mean_across, several
from qat.placement.held import prepared_networks
from qat.placement.prepared import batchnorms
from qat.reestimate import reestimate_batchnorm
from qat.training.batches import looking_ahead
from qat.training.calls import Step, evaluating
from qat.training.finishing import Finishing
from qat.training.processes import first

logger = logging.getLogger(__name__)


class ReestimatedBatchNorm(Finishing):
    """Measures BatchNorm's statistics under the final weights; stands behind `QuantizationAwareTraining`.

    Args:
        batches: of the training data, of all processes together.

    Raises:
        ConfigError: no batch; when training ends, no prepared network.
    """

    def __init__(self, *, batches: int = 50) -> None:
        if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
            raise ConfigError(f"need reestimate_bn >= 1, a number of batches, got {batches!r}; 50 is usual")
        self.batches = batches
        self._measured = False  # in this fit

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin anew."""
        self._measured = False

    def finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, and bring checkpoints of the last step up to date."""
        if self._measured:
            return
        networks = prepared_networks(pl_module)
        if not networks:
            raise ConfigError(
                f"{type(pl_module).__name__} has no prepared network whose BatchNorm could be measured; put "
                "QuantizationAwareTraining into the Trainer's callbacks too"
            )
        count = math.ceil(self.batches / (dist.get_world_size() if several() else 1))
        # what was trained on: under DDP, with the sampler that gives each process its own part
        with evaluating(pl_module), looking_ahead(trainer.train_dataloader, count) as batches:
            step = _Networks(networks, Step(pl_module, networks))
            seen = reestimate_batchnorm(step, ({"batch": batch} for batch in batches), max_batches=count)
        measured = statistics(pl_module)
        for statistic in measured.values():
            statistic.copy_(mean_across(statistic))
        logger.info("BatchNorm statistics from %d batches", seen)
        if first():
            for path in _written(trainer):
                _update(trainer, path, measured)
        trainer.strategy.barrier()
        self._measured = True


class _Networks(nn.Module):
    """Prepared networks alone, fed by the step of the module that holds them: a teacher beside them stays as it is."""

    def __init__(self, networks: Mapping[str, nn.Module], step: Step) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks.values())
        self.__dict__["step"] = step  # past nn.Module, which would find the teacher through it

    def forward(self, batch: Any) -> Any:
        return self.__dict__["step"](batch)


def statistics(pl_module: pl.LightningModule) -> dict[str, Tensor]:
    """Running means and variances of prepared networks, under their names in the module's state dict."""
    norms = {id(norm) for network in prepared_networks(pl_module).values() for norm in batchnorms(network)}
    return {
        f"{name}.{which}": cast(Tensor, tensor)
        for name, module in pl_module.named_modules(remove_duplicate=False)
        if id(module) in norms
        for which in ("running_mean", "running_var")
        if (tensor := getattr(module, which)) is not None
    }


def _update(trainer: pl.Trainer, path: str, measured: Mapping[str, Tensor]) -> None:
    files = trainer.strategy.checkpoint_io
    # this very training wrote it, and a project's hyper-parameters may be objects
    content: Any = files.load_checkpoint(path, weights_only=False)
    if content.get("global_step") != trainer.global_step:
        return
    content["state_dict"].update({name: tensor.detach().cpu() for name, tensor in measured.items()})
    files.save_checkpoint(content, path)
    logger.info("%s has these statistics", Path(path).name)


def _written(trainer: pl.Trainer) -> list[str]:
    """Files that checkpoint callbacks have left, each once."""
    paths: dict[str, None] = {}
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            paths.update(dict.fromkeys([*callback.best_k_models, callback.best_model_path, callback.last_model_path]))
    return [path for path in paths if path and Path(path).is_file()]
