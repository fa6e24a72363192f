"""The Lightning callback: any LightningModule trains quantization-aware, and leaves a verified artefact.

setup            the networks are replaced by their fake-quant copies, before Lightning builds the optimizers
on_fit_start     calibration; not when ranges are there already: resumed, or calibrated by the caller
every batch      progress -> phase -> switches
on_fit_end       convert a copy, export, verify; the LightningModule itself stays in fake-quant
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from qat.artifact import Artifact
from qat.calibrate import calibrate
from qat.compile import compile_regions
from qat.errors import ConfigError, unknown_name
from qat.parity import ParityReport
from qat.placement import PLACEMENTS, PreparedModel, quantizers
from qat.placement.held import prepared_networks
from qat.provenance import FLOAT, KEY, provenance
from qat.recipe import QuantRecipe, numerics
from qat.switches import fake_quant, freeze_batchnorm, observers
from qat.target import Target
from qat.training.batches import calibration_loader, looking_ahead
from qat.training.calls import Call, Step, call_step
from qat.training.delivery import Delivery
from qat.training.finishing import finish_all
from qat.training.finite import require_finite_gradients, require_finite_loss
from qat.training.preparation import (
    Preparation,
    require_own_average,
    require_own_layers,
    require_own_parameters,
    stop_waiting,
)
from qat.training.processes import alike, by_first
from qat.training.restorable import require_restorable
from qat.training.resumption import look_before_loading, stop_looking
from qat.training.schedule import Phase, Schedule, progress
from qat.training.stopping import stop_safely
from qat.training.strategy import (
    adapt,
    look_for_unused,
    require_float_scales,
    require_own_script,
    require_replicas,
    trains_ranges,
)

logger = logging.getLogger(__name__)

COMPILE = (None, "regional")


class QuantizationAwareTraining(pl.Callback):
    """Quantization-aware training for any LightningModule.

    The network is prepared and calibrated when `fit` starts. Callers that want it earlier, to measure the calibrated
    model before training, call `prepare` and `calibrate` themselves; `fit` then leaves both out.

    Args:
        recipe: name of a recipe (`conf/quant`), its mapping, or a `QuantRecipe`.
        target: name of a target (`conf/target`), its mapping, or a `Target`.
        freeze_observers_at: share of training after which observed ranges are frozen; trained ones train to the end.
        freeze_bn_at: share of training after which BatchNorm statistics are frozen too.
        activations_from: share of training after which activations are quantized, and not the weights alone.
        calibration_batches: batches that set the ranges before training.
        modules: attributes of the LightningModule that hold the networks, or `forward` for what its own forward
            computes, with layers that lie directly on it; None finds it.
        exclude: glob patterns of modules that stay in float, besides the recipe's.
        placement: `graph`, or `modules` for a network that cannot be traced (`qat.prepare`).
        leaf_modules: module classes that are not traced through and stay in float.
        export: file that the trained network is exported to when `fit` ends; None for none.
        verify: audit that file, and compare it, in its runtime, with the trained network on the validation data.
        compile: "regional" runs what follows the convolutions in compiled loops during `fit`; None runs it eagerly.

    Attributes:
        artifact: what was exported, after `fit`.
        report: its parity table, after `fit`.

    Raises:
        ConfigError: a value out of range; an unknown recipe or target; two of these callbacks in one Trainer.
        CaptureError, PlacementError: when `fit` starts and the network cannot be prepared.
        NumericsError: a loss, weight or range that is NaN or Inf.
        ExportError: a folder that cannot be written, when `fit` starts; then also a missing package, a `ConfigError`.
        ArtifactError: when `fit` ends and the artefact does not pass its audit.
        ParityError: when `fit` ends and the artefact does not behave like the network.
    """

    def __init__(
        self,
        *,
        recipe: str | Mapping[str, Any] | QuantRecipe = "w8a8",
        target: str | Mapping[str, Any] | Target = "onnxruntime",
        freeze_observers_at: float = Schedule.freeze_observers_at,
        freeze_bn_at: float = Schedule.freeze_bn_at,
        activations_from: float = Schedule.activations_from,
        calibration_batches: int = 8,
        modules: str | Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        placement: str = "graph",
        leaf_modules: Sequence[type[nn.Module]] = (),
        export: str | Path | None = None,
        verify: bool = True,
        compile: str | None = None,
    ) -> None:
        if compile not in COMPILE:
            raise ConfigError(unknown_name("value of compile", str(compile), map(str, COMPILE)))
        self.recipe, self.target = QuantRecipe.parse(recipe), Target.parse(target)
        numerics(self.recipe, self.target)
        self.schedule = Schedule(
            freeze_observers_at=freeze_observers_at, freeze_bn_at=freeze_bn_at, activations_from=activations_from
        )
        if calibration_batches < 1:
            raise ConfigError(f"need calibration_batches >= 1, got {calibration_batches}: ranges start from data")
        self.calibration_batches = calibration_batches
        if placement not in PLACEMENTS:
            raise ConfigError(unknown_name("placement", placement, PLACEMENTS))
        self.preparation = Preparation(
            recipe=self.recipe,
            target=self.target,
            modules=(modules,) if isinstance(modules, str) else None if modules is None else tuple(modules),
            exclude=tuple(exclude),
            placement=placement,
            leaf_modules=tuple(leaf_modules),
        )
        self.delivery: Delivery | None = None
        if export is not None:
            self.delivery = Delivery(path=Path(export), verify=verify, training_batches=calibration_batches)
        self.compile = compile
        self.artifact: Artifact | None = None
        self.report: ParityReport | None = None
        self._phase: Phase | None = None  # the last one that was logged; nothing depends on it
        self._batch: tuple[Any, int] | None = None

    @property
    def phase(self) -> Phase | None:
        """Where the schedule is; None before training."""
        return self._phase

    # the verbs, for callers that do not wait for fit

    def prepare(
        self, pl_module: pl.LightningModule, example_inputs: Any, *, example_kwargs: Mapping[str, Any] | None = None
    ) -> PreparedModel:
        """Replace the network by its fake-quant copy, on its device and in its mode; once, later calls change nothing.

        Args:
            pl_module: holds one network.
            example_inputs: what the network takes, as for `qat.prepare`.
            example_kwargs: keyword inputs of its forward.

        Returns:
            The copy, which is now the attribute.
        """
        args = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
        networks = self.preparation.find(pl_module)
        if len(networks) > 1:
            raise ConfigError(f"prepare takes the inputs of one network, got {', '.join(networks)}; fit finds its own")
        calls = {name: Call(args=args, kwargs=example_kwargs or {}) for name in networks}
        return next(iter(self.preparation.apply(pl_module, networks, calls).values()))

    def calibrate(self, pl_module: pl.LightningModule, batches: Iterable[Any]) -> int:
        """Set the ranges from the first `calibration_batches` of batches as `training_step` takes them.

        Returns:
            How many there were.
        """
        step = Step(pl_module, self.prepared(pl_module))
        return calibrate(step, ({"batch": batch} for batch in batches), max_batches=self.calibration_batches)

    def prepared(self, pl_module: pl.LightningModule) -> dict[str, PreparedModel]:
        """The fake-quant networks of the LightningModule, by attribute.

        Raises:
            ConfigError: when they are not prepared.
        """
        return self.preparation.prepared(pl_module)

    # Lightning's hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare before the optimizers are built, and refuse what would only fail when training is over.

        For other stages a module is prepared only if a checkpoint of a prepared one is loaded into it.
        """
        if stage != "fit":
            prepare = partial(self.preparation.before_loading, trainer, pl_module, stage)
            look_before_loading(pl_module, self.recipe, self.target, prepare)
            return
        if sum(isinstance(c, QuantizationAwareTraining) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigError("QuantizationAwareTraining is given twice; a Trainer takes one, with modules=[...]")
        self._phase = None
        stop_safely(trainer)
        require_replicas(trainer.strategy)
        require_float_scales(str(trainer.precision))
        require_own_average(trainer, self)
        adapt(trainer.strategy)
        if self.schedule.activations_from > 0:
            look_for_unused(trainer.strategy, self.recipe)
        if not prepared_networks(pl_module):
            require_own_script(trainer.strategy)
        if self.delivery is not None:
            self.delivery.require_possible(self.target)
        look_before_loading(pl_module, self.recipe, self.target)
        self.preparation.before_fit(trainer, pl_module, single=self.delivery is not None)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Calibrate, unless the ranges came with a checkpoint or from the caller."""
        stop_looking(pl_module)
        if loaded := trainer._checkpoint_connector._loaded_checkpoint:  # Lightning restores training behind this hook
            require_restorable(trainer, loaded)
        prepared = self.prepared(pl_module)
        require_own_parameters(trainer, pl_module)
        require_own_layers(trainer, pl_module)
        for network in prepared.values():
            freeze_batchnorm(network, frozen=False)  # as after an earlier fit
            if self.compile == "regional":
                compile_regions(network)
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            if self.schedule.activations_from > 0:
                raise ConfigError(
                    f"activations_from={self.schedule.activations_from} is a share of training, and this one has no "
                    "end; set max_epochs or max_steps, or activations_from=0"
                )
            logger.warning("neither max_epochs nor max_steps is set, so ranges never freeze; set one of them")
        if any(q.calibrated for network in prepared.values() for q in quantizers(network).values()):
            return
        with looking_ahead(calibration_loader(trainer), self.calibration_batches) as batches:
            count = self.calibrate(pl_module, batches)
        logger.info("calibrated %s on %d batches", ", ".join(prepared), count)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a schedule that would not begin, where only epochs can be counted: now the data is known."""
        epochs = trainer.max_epochs or 0
        if math.isfinite(trainer.num_training_batches) or trainer.max_steps != -1 or epochs < 1:
            return
        last = (epochs - 1) / epochs
        if not (missed := self.schedule.never_begun(last)):
            return
        if "activations_from" in missed:
            raise ConfigError(
                f"activations_from={self.schedule.activations_from} is a share of training, and training data without "
                f"a length moves progress once an epoch, to {last:.3g} at most here: activations would never train on "
                "their grids; set max_steps or limit_train_batches, or activations_from=0"
            )
        logger.warning(
            "training data without a length moves progress once an epoch, to %.3g at most here, and %s is never "
            "reached; set max_steps or limit_train_batches",
            last,
            " or ".join(f"{name}={getattr(self.schedule, name)}" for name in missed),
        )

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Apply the phase; it is a function of progress alone, so a resumed run needs nothing else."""
        self._batch = (batch, batch_idx)
        done = progress(
            epoch=trainer.current_epoch,
            batch=batch_idx,
            batches=trainer.num_training_batches,
            max_epochs=trainer.max_epochs,
            step=trainer.global_step,
            max_steps=trainer.max_steps,
        )
        phase, activations = self.schedule.phase(done), self.schedule.quantizes_activations(done)
        self._quantize_activations(pl_module, activations)
        for network in self.prepared(pl_module).values():
            observers(network, enabled=phase.ranges_move, trained=False)
            freeze_batchnorm(network, frozen=not phase.batchnorm_moves)
        if phase is not self._phase:
            go_on = "" if phase.ranges_move or not trains_ranges(self.recipe) else "; trained ranges go on"
            logger.info("epoch %d, batch %d: %s%s", trainer.current_epoch, batch_idx, phase, go_on)
            self._phase = phase

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure what would be deployed: with activations on their grids, whether or not they train on them yet."""
        self._quantize_activations(pl_module, True)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """End on NaN or Inf before it reaches the weights."""

        def again() -> Any:
            assert self._batch is not None
            return call_step(pl_module, "training_step", *self._batch)

        require_finite_loss(loss, step=trainer.global_step, module=pl_module, run=again)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """End on gradients of NaN or Inf, unless a loss scaler is there that skips such steps."""
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            require_finite_gradients(pl_module, step=trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let go of the batch."""
        self._batch = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End with activations on their grids, and the same BatchNorm statistics in every process."""
        self._quantize_activations(pl_module, True)
        alike(self.prepared(pl_module).values())

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say in the checkpoint what its quantizers are, and which float network they were put into."""
        checkpoint[KEY] = {**provenance(self.recipe, self.target), FLOAT: dict(self.preparation.fingerprints)}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember which float network training began with; the one here is another, until the checkpoint is loaded."""
        told = checkpoint.get(KEY, {}).get(FLOAT)
        self.preparation.fingerprints.clear()
        if isinstance(told, Mapping):
            self.preparation.fingerprints.update({str(k): str(v) for k, v in told.items()})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the module's own hooks."""
        stop_looking(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module's own hooks, and its quantizers on, wherever fit ended."""
        self._quantize_activations(pl_module, True)
        stop_looking(pl_module)
        stop_waiting(pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export and verify, after the last checkpoint is written; in `fast_dev_run` nothing is left on disk.

        Of several processes the first one does, and the others wait.
        """
        for network in self.prepared(pl_module).values():
            compile_regions(network, enabled=False)
        delivery = self.delivery
        if delivery is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        finish_all(trainer, pl_module)
        ((name, network),) = self.prepared(pl_module).items()
        sha256 = self.preparation.fingerprints.get(name)
        self.artifact, self.report = by_first(lambda: delivery.deliver(trainer, pl_module, name, network, sha256))

    def _quantize_activations(self, pl_module: pl.LightningModule, activations: bool) -> None:
        """Only where the schedule holds them back: whoever switches quantizers by hand keeps the last word."""
        if self.schedule.activations_from > 0:
            for network in prepared_networks(pl_module).values():
                fake_quant(network, enabled=True, activations=activations)
