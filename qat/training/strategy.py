"""Strategies: what Lightning's ways of using several devices need, to train fake-quant networks.

DDP               each process has the whole network: ranges are exchanged (functional/across.py), gradients averaged
sync_batchnorm    Lightning's plugin would take the quantizers behind BatchNorms away; ours leaves them
trained ranges    train to the end, so that every parameter has a gradient at every step, as DDP expects; where
                  activations are quantized later it is told to look for those without
FSDP, DeepSpeed   refused: a process sees a slice of a weight, and its range needs all of it
"""

from __future__ import annotations

import inspect

from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import nn

from qat.errors import ConfigError
from qat.quantizers.trained import TrainedFakeQuantize
from qat.recipe import QuantRecipe
from qat.switches import sync_batchnorm

SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
UNUSED = "find_unused_parameters"
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class SyncedBatchNorm(TorchSyncBatchNorm):
    """BatchNorm over the batches of all processes, as a plugin of a Trainer's: `qat.sync_batchnorm`."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronise; those that end in a quantizer keep it."""
        return sync_batchnorm(model)


def require_replicas(strategy: Strategy) -> None:
    """Raise `ConfigError` for a strategy under which no process has the whole network."""
    require_replicating(type(strategy))


def require_replicating(kind: type[Strategy]) -> None:
    """As `require_replicas`, of the class."""
    if issubclass(kind, SHARDED):
        raise ConfigError(
            f"{kind.__name__} shards parameters over processes, and the range of a weight needs all of it: "
            'quantization-aware training takes strategy="ddp", where each process has the whole network. For one that '
            "does not fit, lower the batch size, raise accumulate_grad_batches, or set precision=bf16-mixed"
        )


def require_float_scales(precision: str) -> None:
    """Raise `ConfigError` for a precision that would change the type of scales, and of what is exported."""
    if precision not in PRECISIONS:
        raise ConfigError(
            f"precision={precision} changes the type of scales, and runtimes compute with float32 ones; use "
            f"{', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}"
        )


def require_own_script(strategy: Strategy) -> None:
    """Raise `ConfigError` for processes that begin in the middle of a script, and keep what they prepare."""
    launcher = strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):
        raise ConfigError(
            f"processes that are started by {launcher._start_method} keep the prepared network to themselves. Use "
            'strategy="ddp" or torchrun; or call prepare of the callback before fit'
        )


def adapt(strategy: Strategy) -> None:
    """Leave quantizers where Lightning would put plain layers, before the strategy takes the module."""
    # no public name for it; it is what the Trainer was given
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        strategy._layer_sync = SyncedBatchNorm()  # type: ignore[attr-defined]


def look_for_unused(strategy: Strategy, recipe: QuantRecipe) -> None:
    """Tell DDP that ranges of activations may be no part of the loss, where they are trained.

    Raises:
        ConfigError: `find_unused_parameters=False`.
    """
    if not isinstance(strategy, DDPStrategy) or not trains_ranges(recipe):
        return
    if not strategy._ddp_kwargs.setdefault(UNUSED, True):
        raise ConfigError(
            f"{UNUSED}=False, and recipe {recipe.name} trains ranges that are no part of the loss at first, with "
            'activations_from: DDP would wait for their gradient. Use strategy="ddp_find_unused_parameters_true", or '
            "activations_from=0"
        )


def trains_ranges(recipe: QuantRecipe) -> bool:
    """Whether ranges of the recipe are parameters."""
    kinds = [recipe.weight.quantizer.resolve(), recipe.activation.quantizer.resolve()]
    return any(inspect.isclass(kind) and issubclass(kind, TrainedFakeQuantize) for kind in kinds)
