"""The Lightning callback: any LightningModule trains quantization-aware, and leaves a verified artefact.

setup            the networks are replaced by their fake-quant copies, before Lightning builds the optimizers
on_fit_start     calibration; not when ranges are there already: resumed, or calibrated by the caller
every batch      progress -> phase -> switches
on_fit_end       convert a copy, export, verify; the LightningModule itself stays in fake-quant
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from qat.artifact import Artifact
from qat.calibrate import calibrate, labels_of
from qat.compile import compile_regions
from qat.convert import convert
from qat.errors import ConfigError, ExportError, unknown_name
from qat.export import WRITERS
from qat.export import export as export_model
from qat.inputs import Inputs
from qat.placement import PLACEMENTS, PreparedModel, prepare, quantizers
from qat.provenance import KEY, differences, provenance
from qat.recipe import QuantRecipe, numerics
from qat.switches import freeze_batchnorm, observers
from qat.target import Target
from qat.training.batches import calibration_loader, looking_ahead, training_loader
from qat.training.calls import Call, Step, call_step, evaluating, example_calls
from qat.training.finite import require_finite_gradients, require_finite_loss
from qat.training.networks import candidate_networks, find_networks, replace_network
from qat.training.schedule import Phase, Schedule, progress
from qat.verify import ParityReport
from qat.verify import verify as verify_artifact

logger = logging.getLogger(__name__)

LISTED = 5  # names of an error message
COMPILE = (None, "regional")


class QuantizationAwareTraining(pl.Callback):
    """Quantization-aware training for any LightningModule.

    The network is prepared and calibrated when `fit` starts. Callers that want it earlier, to measure the calibrated
    model before training, call `prepare` and `calibrate` themselves; `fit` then leaves both out.

    Args:
        recipe: name of a recipe (`conf/quant`), its mapping, or a `QuantRecipe`.
        target: name of a target (`conf/target`), its mapping, or a `Target`.
        freeze_observers_at: share of training after which ranges are frozen.
        freeze_bn_at: share of training after which BatchNorm statistics are frozen too.
        calibration_batches: batches that set the ranges before training.
        modules: attributes of the LightningModule that hold the networks; None finds it.
        exclude: glob patterns of modules that stay in float, besides the recipe's.
        placement: `graph`, or `modules` for a network that cannot be traced (`qat.prepare`).
        export: file that the trained network is exported to when `fit` ends; None for none.
        verify: compare that file, in its runtime, with the trained network on the validation data.
        compile: "regional" runs what follows the convolutions in compiled loops during `fit`; None runs it eagerly.

    Attributes:
        artifact: what was exported, after `fit`.
        report: its parity table, after `fit`.

    Raises:
        ConfigError: a value out of range; an unknown recipe or target; two of these callbacks in one Trainer.
        CaptureError, PlacementError: when `fit` starts and the network cannot be prepared.
        NumericsError: a loss, weight or range that is NaN or Inf.
        ExportError: a folder that cannot be written, when `fit` starts.
        ParityError: when `fit` ends and the artefact does not behave like the network.
    """

    def __init__(
        self,
        *,
        recipe: str | Mapping[str, Any] | QuantRecipe = "w8a8",
        target: str | Mapping[str, Any] | Target = "onnxruntime",
        freeze_observers_at: float = Schedule.freeze_observers_at,
        freeze_bn_at: float = Schedule.freeze_bn_at,
        calibration_batches: int = 8,
        modules: str | Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        placement: str = "graph",
        export: str | Path | None = None,
        verify: bool = True,
        compile: str | None = None,
    ) -> None:
        if compile not in COMPILE:
            raise ConfigError(unknown_name("value of compile", str(compile), map(str, COMPILE)))
        self.recipe, self.target = QuantRecipe.parse(recipe), Target.parse(target)
        numerics(self.recipe, self.target)
        self.schedule = Schedule(freeze_observers_at=freeze_observers_at, freeze_bn_at=freeze_bn_at)
        if calibration_batches < 1:
            raise ConfigError(f"need calibration_batches >= 1, got {calibration_batches}: ranges start from data")
        self.calibration_batches = calibration_batches
        self.modules = [modules] if isinstance(modules, str) else None if modules is None else list(modules)
        self.exclude, self.placement = tuple(exclude), placement
        if placement not in PLACEMENTS:
            raise ConfigError(unknown_name("placement", placement, PLACEMENTS))
        self.export_path = None if export is None else Path(export)
        self.verify, self.compile = verify, compile
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
        networks = find_networks(pl_module, self.modules)
        if len(networks) > 1:
            raise ConfigError(f"prepare takes the inputs of one network, got {', '.join(networks)}; fit finds its own")
        calls = {name: Call(args=args, kwargs=example_kwargs or {}) for name in networks}
        return next(iter(self._prepare(pl_module, networks, calls).values()))

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
        networks = find_networks(pl_module, self.modules)
        prepared = {name: n for name, n in networks.items() if isinstance(n, PreparedModel)}
        if len(prepared) < len(networks):
            missing = ", ".join(repr(name) for name in networks if name not in prepared)
            raise ConfigError(
                f"{missing} of {type(pl_module).__name__} is not prepared, or was replaced since; build networks in "
                "__init__ or configure_model, or call prepare first"
            )
        return prepared

    # Lightning's hooks

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare before the optimizers are built, and refuse what would only fail when training is over."""
        if stage != "fit":
            return
        if sum(isinstance(c, QuantizationAwareTraining) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigError("QuantizationAwareTraining is given twice; a Trainer takes one, with modules=[...]")
        self._phase = None
        if self.export_path is not None:
            require_writable(self.export_path)
        self._look_before_loading(pl_module)
        if not candidate_networks(pl_module):
            self._prepare_after_configure_model(trainer, pl_module)
        else:
            self._prepare_for_fit(trainer, pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Calibrate, unless the ranges came with a checkpoint or from the caller."""
        pl_module.__dict__.pop("on_load_checkpoint", None)  # the class's own again: what was to be loaded is loaded
        prepared = self.prepared(pl_module)
        _require_own_parameters(trainer, pl_module)
        for network in prepared.values():
            freeze_batchnorm(network, frozen=False)  # as after an earlier fit
            if self.compile == "regional":
                compile_regions(network)
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            logger.warning("neither max_epochs nor max_steps is set, so ranges never freeze; set one of them")
        if any(q.calibrated for network in prepared.values() for q in quantizers(network).values()):
            return
        with looking_ahead(calibration_loader(trainer), self.calibration_batches) as batches:
            count = self.calibrate(pl_module, batches)
        logger.info("calibrated %s on %d batches", ", ".join(prepared), count)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Apply the phase; it is a function of progress alone, so a resumed run needs nothing else."""
        self._batch = (batch, batch_idx)
        phase = self.schedule.phase(
            progress(
                epoch=trainer.current_epoch,
                batch=batch_idx,
                batches=trainer.num_training_batches,
                max_epochs=trainer.max_epochs,
                step=trainer.global_step,
                max_steps=trainer.max_steps,
            )
        )
        for network in self.prepared(pl_module).values():
            observers(network, enabled=phase.ranges_move)
            freeze_batchnorm(network, frozen=not phase.batchnorm_moves)
        if phase is not self._phase:
            logger.info("epoch %d, batch %d: %s", trainer.current_epoch, batch_idx, phase)
            self._phase = phase

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

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say in the checkpoint what its quantizers are."""
        checkpoint[KEY] = provenance(self.recipe, self.target)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Export and verify, after the last checkpoint is written; in `fast_dev_run` nothing is left on disk."""
        for network in self.prepared(pl_module).values():
            compile_regions(network, enabled=False)
        if self.export_path is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        (network,) = self.prepared(pl_module).values()
        self.artifact = export_model(convert(network), self.export_path)
        logger.info("wrote %s, %.2f MB", self.artifact.path, self.artifact.size_bytes / 1e6)
        if self.verify:
            self._verify(trainer, pl_module, self.artifact)

    # how

    def _look_before_loading(self, pl_module: pl.LightningModule) -> None:
        """Look at a checkpoint before its tensors are copied: Lightning asks callbacks only afterwards."""
        own = type(pl_module).on_load_checkpoint

        def look(checkpoint: dict[str, Any]) -> None:
            self._require_prepared_alike(pl_module, checkpoint)
            own(pl_module, checkpoint)

        pl_module.on_load_checkpoint = look  # type: ignore[method-assign]

    def _require_prepared_alike(self, pl_module: pl.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        about = checkpoint.get(KEY)
        if about and (unlike := differences(about, self.recipe, self.target)):
            raise ConfigError(
                f"the checkpoint was trained with recipe {about['recipe']} for target {about['target']}, this run has "
                f"{self.recipe.name} for {self.target.name} ({', '.join(unlike)}); resume with the same, or start from "
                "its float weights"
            )
        for name, network in pl_module.named_modules():
            if isinstance(network, PreparedModel):
                _require_same_quantizers(name, network, checkpoint.get("state_dict", {}))

    def _prepare_for_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        networks = find_networks(pl_module, self.modules)
        if self.export_path is not None and len(networks) > 1:
            raise ConfigError(f"export takes one network, got {', '.join(networks)}; call qat.export on each after fit")
        todo = {name: n for name, n in networks.items() if not isinstance(n, PreparedModel)}
        calls: Mapping[str, Call] = {}
        if todo:
            with evaluating(pl_module):
                calls = example_calls(pl_module, todo) or self._calls_of_first_batch(trainer, pl_module, todo)
        self._prepare(pl_module, networks, calls)

    def _prepare_after_configure_model(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """For a network that is not there yet: Lightning has no hook between `configure_model` and the optimizers."""
        configure = pl_module.configure_model

        def configure_and_prepare() -> None:
            del pl_module.configure_model  # the class's own again
            configure()
            self._prepare_for_fit(trainer, pl_module)

        pl_module.configure_model = configure_and_prepare  # type: ignore[method-assign]

    def _calls_of_first_batch(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, networks: Mapping[str, nn.Module]
    ) -> dict[str, Call]:
        with looking_ahead(training_loader(trainer), 1) as batches:
            for batch in batches:
                return Step(pl_module, networks).calls(batch)
        raise ConfigError("the training data has no batch to prepare the network with")

    def _prepare(
        self, pl_module: pl.LightningModule, networks: Mapping[str, nn.Module], calls: Mapping[str, Call]
    ) -> dict[str, PreparedModel]:
        for name, network in networks.items():
            if isinstance(network, PreparedModel):
                self._require_same(name, network)
                continue
            prepared = prepare(
                network,
                calls[name].args,
                self.recipe,
                self.target,
                example_kwargs=calls[name].kwargs,
                exclude=self.exclude,
                placement=self.placement,
            )
            replace_network(pl_module, name, prepared)
            logger.info("prepared %s: %s for %s", name, self.recipe.name, self.target.name)
        return self.prepared(pl_module)

    def _require_same(self, name: str, network: PreparedModel) -> None:
        if (network.recipe, network.target) != (self.recipe, self.target):
            raise ConfigError(
                f"{name!r} is already prepared with recipe {network.recipe.name} for target {network.target.name}, "
                f"the callback says {self.recipe.name} for {self.target.name}; give it the same, or a float network"
            )

    def _verify(self, trainer: pl.Trainer, pl_module: pl.LightningModule, artifact: Artifact) -> None:
        ((name, network),) = self.prepared(pl_module).items()
        validates = trainer.val_dataloaders is not None
        loader = trainer.val_dataloaders if validates else training_loader(trainer)
        count = sum(trainer.num_val_batches) if validates else self.calibration_batches
        step = Step(pl_module, {name: network}, validation=validates)

        def examples(batch: Any) -> Any:
            call = step.calls(batch)[name]
            inputs = Inputs(call.args, call.kwargs)
            labels = labels_of(batch)
            return inputs if labels is None else (inputs, labels)

        with evaluating(pl_module), looking_ahead(loader, count) as batches:
            self.report = verify_artifact(network, artifact, map(examples, batches))
        default = self.report.stages[-1]
        logger.info("%s: %.2f %% agree over %d examples", default.name, default.agreement, self.report.examples)


def require_writable(path: Path) -> None:
    """Raise `ExportError` when `path` could not be written, `ConfigError` when its suffix is not known."""
    if path.suffix not in WRITERS:
        raise ConfigError(f"cannot export to {path.name!r}; known suffixes: {', '.join(WRITERS)}")
    folder = next(p for p in (path.parent.absolute(), *path.parent.absolute().parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError(f"cannot write {path}: {folder} is no folder that can be written. Choose another for export")


def _require_same_quantizers(name: str, network: PreparedModel, state: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where a checkpoint has quantizers in other places: another exclude, or another model."""
    ours = {f"{name}.{q}" for q in quantizers(network)}
    scales = {key.rpartition(".")[0] for key in state if key.startswith(f"{name}.") and key.endswith(".scale")}
    theirs = {q for q in scales if "_quantizer" in q.rpartition(".")[2]}
    if theirs == ours:
        return
    sides = {"only in the checkpoint": theirs - ours, "only in this run": ours - theirs}
    listed = "; ".join(f"{what}: {', '.join(sorted(q)[:LISTED])}" for what, q in sides.items() if q)
    raise ConfigError(
        f"{name!r} was prepared differently for the checkpoint, its quantizers are in other places ({listed}). Resume "
        "with the same exclude and the same model"
    )


def _require_own_parameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    own = {id(p) for p in pl_module.parameters()}
    trained = [p for o in trainer.optimizers for group in o.param_groups for p in group["params"]]
    strays = sum(id(p) not in own for p in trained)
    if strays:
        raise ConfigError(
            f"{strays} of the optimizers' {len(trained)} parameters are not in {type(pl_module).__name__}: they were "
            "taken before it was prepared. Build optimizers in configure_optimizers, from self.parameters()"
        )
