"""Weights that jump between two integers, damped or frozen while a network trains (functional/oscillation.py).

damp      before the optimizer steps: 2 * lambda * (w - Q(w)) is added to the gradient of a weight inside its grid
freeze    after it has stepped: a weight whose integer came and went too often stays at its average integer

    lambda       0 at the first step, `damp` at the last
    threshold    `freeze_from` at the first step, `freeze` at the last

Observed ranges must hold still before a weight can be frozen: the largest weight of a channel sets the scale of all. So
weights are counted from the first step, and frozen from `freeze_observers_at` on; with trained ranges from the first.
"""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor
from torch.optim import Optimizer

from qat.errors import ConfigError
from qat.functional.across import several
from qat.functional.oscillation import Oscillation, annealed, damping_loss, follow, freeze_
from qat.placement.held import prepared_networks
from qat.placement.seen import SeenWeight, seen_weights
from qat.quantizers import DoReFa
from qat.quantizers.trained import TrainedFakeQuantize
from qat.recipe import QuantRecipe

logger = logging.getLogger(__name__)


class OscillationControl(pl.Callback):
    """Calms the weights of the fake-quant networks in a LightningModule; stands beside `QuantizationAwareTraining`.

    Args:
        damp: the lambda at the end of training; None damps nothing.
        freeze: frequency of oscillations, per step, above which a weight is frozen; None freezes nothing.
        freeze_from: that frequency at the first step, from where it falls to `freeze`; None for `freeze` throughout.
        momentum: weight of one step in the frequency, and in the average integer.

    Raises:
        ConfigError: a value out of range, or neither of the two; when training starts, no prepared network, weights
            that are not rounded themselves, or a training without an end.
    """

    def __init__(
        self,
        *,
        damp: float | None = None,
        freeze: float | None = None,
        freeze_from: float | None = None,
        momentum: float = 0.01,
    ) -> None:
        if damp is None and freeze is None:
            raise ConfigError("oscillation needs damp or freeze, e.g. {damp: 0.01} or {freeze: 0.02}")
        if damp is not None and not (damp > 0 and math.isfinite(damp)):
            raise ConfigError(f"need oscillation.damp > 0, got {damp}; 0.01 is usual")
        if freeze is None and freeze_from is not None:
            raise ConfigError(f"oscillation.freeze_from={freeze_from} has no effect without oscillation.freeze")
        first = freeze if freeze_from is None else freeze_from
        if freeze is not None and first is not None and not 0 < freeze <= first < 1:
            raise ConfigError(f"need 0 < oscillation.freeze <= oscillation.freeze_from < 1, got {freeze} and {first}")
        if not 0 < momentum <= 1:
            raise ConfigError(f"need 0 < oscillation.momentum <= 1, got {momentum}; 0.01 looks back some 100 steps")
        self.damp, self.freeze, self.freeze_from, self.momentum = damp, freeze, first, momentum
        self._weights: dict[str, SeenWeight] = {}  # by network and layer
        self._states: dict[str, Oscillation] = {}  # by the same
        self._steps: float = math.inf  # of the whole training
        self._step = 0  # the last one that was followed

    def threshold(self, progress: float) -> float:
        """The frequency above which weights are frozen, at `progress` of training in 0 .. 1."""
        assert self.freeze is not None
        assert self.freeze_from is not None
        return annealed(self.freeze_from, self.freeze, progress)

    def strength(self, progress: float) -> float:
        """The lambda at `progress` of training in 0 .. 1."""
        assert self.damp is not None
        return annealed(0.0, self.damp, progress)

    def frozen(self) -> dict[str, Tensor]:
        """Which weights are frozen, by network and layer, shaped like the weights."""
        return {name: state.frozen for name, state in self._states.items()}

    # Lightning's hooks

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what cannot be calmed, and remember where weights are; resumed, it is known already."""
        self._weights = weights = _weights(pl_module)
        for name, weight in weights.items():
            _require_calm(name, weight)
        if any(isinstance(callback, ModelPruning) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigError(
                "oscillation control and ModelPruning both set weights after a step; prune before training, or leave "
                "one of them out"
            )
        self._steps = trainer.estimated_stepping_batches
        if not math.isfinite(self._steps) and (self.damp is not None or self.freeze != self.freeze_from):
            raise ConfigError(
                "oscillation control grows stronger towards the end of training, and this one has none; set max_epochs "
                "or max_steps, or give freeze alone"
            )
        self._step = trainer.global_step
        if self.freeze is None:
            return
        if self._states and self._states.keys() != weights.keys():
            self._states = {}  # of another network that this callback trained before
        for name, weight in weights.items():
            state = self._states.get(name) or Oscillation.start(weight.integers())
            self._states[name] = Oscillation(*(t.to(weight.layer.weight.device) for t in state))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Damp, before gradients are clipped; with a loss scaler they have their own size again here."""
        if self.damp is None:
            return
        strength = self.strength(trainer.global_step / self._steps)
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for weight in self._weights.values():
            parameter = weight.layer.weight
            if parameter.grad is not None and id(parameter) in stepped:
                parameter.grad.add_(damping_gradient(weight), alpha=strength)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Follow the step that was taken, and put frozen weights back; nothing where gradients accumulate."""
        if self.freeze is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        threshold = self.threshold(self._step / self._steps)
        for name, weight in self._weights.items():
            state, parameter = self._states[name], weight.layer.weight.data
            holds = weight.quantizer.trained or not weight.quantizer.observing
            step = weight.scale() / weight.factor()  # of the weight itself: moves with a trained range, or BatchNorm
            freeze_(parameter, state, step)
            state = follow(state, weight.integers(), momentum=self.momentum, threshold=threshold if holds else math.inf)
            freeze_(parameter, state, step)
            self._states[name] = state

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how many weights were frozen."""
        if self._states:
            masks = self.frozen().values()
            share = 100 * sum(int(m.sum()) for m in masks) / max(sum(m.numel() for m in masks), 1)
            logger.info("oscillation control froze %.2f %% of the weights", share)

    def state_dict(self) -> dict[str, Any]:
        """What is remembered of each weight."""
        return {name: state._asdict() for name, state in self._states.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the checkpoint says."""
        self._states = {name: Oscillation(**state) for name, state in state_dict.items()}


def damping_gradient(weight: SeenWeight) -> Tensor:
    """The gradient of `damping_loss` of a weight as its quantizer sees it, shaped like the weight."""
    spec, scale, factor = weight.quantizer.spec, weight.scale(), weight.factor()
    quantized = weight.integers() * scale
    with torch.enable_grad():
        own = weight.layer.weight.detach().requires_grad_()
        loss = damping_loss(own * factor, quantized, scale, spec.qmin, spec.qmax)
        (gradient,) = torch.autograd.grad(loss, own)
    return gradient


def require_calm(recipe: QuantRecipe, *, freezes: bool, freeze_observers_at: float) -> None:
    """Raise `ConfigError` for a recipe whose weights cannot be damped, or are never frozen.

    Args:
        recipe: whose weights they are.
        freezes: whether weights are to be frozen.
        freeze_observers_at: share of training after which observed ranges hold still.
    """
    kind = recipe.weight.quantizer.resolve()
    if inspect.isclass(kind) and issubclass(kind, DoReFa):
        raise ConfigError(
            f"recipe {recipe.name} rounds a tanh of its weights, which have no integer of their own to stay at; "
            "oscillation control takes recipes with LSQ or observed ranges, such as w4a4_lsq"
        )
    trained = inspect.isclass(kind) and issubclass(kind, TrainedFakeQuantize)
    if freezes and not trained and freeze_observers_at >= 1:
        raise ConfigError(
            f"oscillation.freeze has no effect with freeze_observers_at={freeze_observers_at}: weights freeze once "
            "their ranges hold still. Give freeze_observers_at < 1, or a recipe that trains ranges, such as w4a4_lsq"
        )


def _require_calm(name: str, weight: SeenWeight) -> None:
    if isinstance(weight.quantizer, DoReFa):
        raise ConfigError(f"{name} rounds a tanh of its weight; oscillation control needs another weight quantizer")
    if weight.norm is not None and several():
        raise ConfigError(
            f"{name} has one scale for its whole weight, which its BatchNorm's statistics are folded into, and each "
            "process has its own: oscillation control on several processes needs granularity: per_channel"
        )


def _weights(pl_module: pl.LightningModule) -> dict[str, SeenWeight]:
    """The weights of all prepared networks, by network and layer."""
    found = {
        f"{network}.{name}": weight
        for network, module in prepared_networks(pl_module).items()
        for name, weight in seen_weights(module).items()
    }
    if not found:
        raise ConfigError(
            f"{type(pl_module).__name__} has no prepared network whose weights could oscillate; put "
            "QuantizationAwareTraining into the Trainer's callbacks too"
        )
    return found
