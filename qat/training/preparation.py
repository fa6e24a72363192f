"""Preparation: the networks of a LightningModule become fake-quant networks, before Lightning builds its optimizers.

    networks there already        in `setup`
    built by setup                after it, where Lightning calls configure_model
    built by configure_model      right after it
    prepared by the caller        left as they are
    to validate, test, predict    when a checkpoint of a prepared module is loaded

What a network is prepared with is what the module's own step calls it with (calls.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from pytorch_lightning.utilities.compile import to_uncompiled
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from qat.artifact import fingerprint
from qat.errors import ConfigError
from qat.placement import PreparedModel, prepare
from qat.placement.flat import flat_inputs
from qat.recipe import QuantRecipe
from qat.target import Target
from qat.training.batches import looking_ahead, stage_loader, training_loader
from qat.training.calls import Call, Step, evaluating, example_calls
from qat.training.networks import candidate_networks, find_networks, replace_network
from qat.training.own import layers_of
from qat.training.saved import save_apart

logger = logging.getLogger(__name__)

COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")
STEPS = {"validate": "validation_step", "test": "test_step", "predict": "predict_step"}


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the networks of a LightningModule are prepared.

    Args:
        recipe: for `qat.prepare`.
        target: for `qat.prepare`.
        modules: attributes that hold the networks; None finds it.
        exclude: glob patterns of modules that stay in float, besides the recipe's.
        placement: `graph` or `modules`.
        leaf_modules: classes that are not traced through.

    Attributes:
        fingerprints: of the float networks that were prepared, by name.
    """

    recipe: QuantRecipe
    target: Target
    modules: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    placement: str = "graph"
    leaf_modules: tuple[type[nn.Module], ...] = ()
    fingerprints: dict[str, str] = field(default_factory=dict, init=False, compare=False)

    def find(self, pl_module: pl.LightningModule) -> dict[str, nn.Module]:
        """The networks, prepared or not, by attribute."""
        return find_networks(pl_module, self.modules)

    def prepared(self, pl_module: pl.LightningModule) -> dict[str, PreparedModel]:
        """The fake-quant networks, by attribute.

        Raises:
            ConfigError: when they are not prepared.
        """
        networks = self.find(pl_module)
        prepared = {name: n for name, n in networks.items() if isinstance(n, PreparedModel)}
        if len(prepared) < len(networks):
            missing = ", ".join(repr(name) for name in networks if name not in prepared)
            raise ConfigError(
                f"{missing} of {type(pl_module).__name__} is not prepared, or was replaced since; build networks in "
                "__init__ or configure_model, or call prepare first"
            )
        return prepared

    def apply(
        self, pl_module: pl.LightningModule, networks: Mapping[str, nn.Module], calls: Mapping[str, Call]
    ) -> dict[str, PreparedModel]:
        """Replace networks by their fake-quant copies; those that are prepared stay.

        Args:
            pl_module: holds them.
            networks: by attribute.
            calls: what those that are not prepared are called with.

        Raises:
            ConfigError: a network is prepared with another recipe, or for another target.
        """
        for name, network in networks.items():
            if isinstance(network, PreparedModel):
                self._require_same(name, network)
                continue
            self.fingerprints[name] = fingerprint(network)
            prepared = prepare(
                layers_of(pl_module) if network is pl_module else network,
                calls[name].args,
                self.recipe,
                self.target,
                example_kwargs=calls[name].kwargs,
                exclude=self.exclude,
                placement=self.placement,
                leaf_modules=self.leaf_modules,
            )
            replace_network(pl_module, name, prepared)
            save_apart(pl_module, name)
            logger.info("prepared %s: %s for %s", name, self.recipe.name, self.target.name)
        return self.prepared(pl_module)

    def before_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, single: bool) -> None:
        """Prepare what the module holds, or will hold after its own `setup` and `configure_model`.

        Args:
            trainer: whose training data tells what the networks are called with.
            pl_module: holds them.
            single: whether several networks are refused, because one file is to be exported.
        """
        # what is there is not all, where a network is built later: the only child may be a teacher; nor is the data
        later = any(is_overridden(hook, pl_module) for hook in ("setup", "configure_model"))
        if candidate_networks(pl_module) and not later:
            self._of_fit(trainer, pl_module, single)
            return
        # Lightning calls a module's setup behind those of callbacks, and has no hook between configure_model and the
        # optimizers
        configure = pl_module.configure_model

        def configure_and_prepare() -> None:
            stop_waiting(pl_module)
            configure()
            with torch.device("cpu"):  # Lightning builds on the device of the strategy; loaders draw on the CPU
                self._of_fit(trainer, pl_module, single)

        configure_and_prepare.waits = True  # type: ignore[attr-defined]
        pl_module.configure_model = configure_and_prepare  # type: ignore[method-assign]

    def before_loading(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Prepare a float module for the checkpoint of a prepared one, by the first batch of the stage.

        Args:
            trainer: whose data tells what the networks are called with.
            pl_module: holds them.
            stage: `validate`, `test` or `predict`.
        """
        todo = {name: n for name, n in self.find(pl_module).items() if not isinstance(n, PreparedModel)}
        if todo:
            with evaluating(pl_module):
                calls = example_calls(pl_module, todo) or _calls_of_stage(trainer, pl_module, todo, stage)
            self.apply(pl_module, todo, calls)

    def _of_fit(self, trainer: pl.Trainer, pl_module: pl.LightningModule, single: bool) -> None:
        uncompiled(pl_module)
        networks = self.find(pl_module)
        for name, network in networks.items():
            if isinstance(network, OptimizedModule):
                logger.warning(
                    "%s trains without torch.compile, which hides its layers; compile='regional' helps", name
                )
                networks[name] = network._orig_mod
                replace_network(pl_module, name, networks[name])
        if single and len(networks) > 1:
            raise ConfigError(f"export takes one network, got {', '.join(networks)}; call qat.export on each after fit")
        todo = {name: n for name, n in networks.items() if not isinstance(n, PreparedModel)}
        calls: Mapping[str, Call] = {}
        if todo:
            with evaluating(pl_module):
                calls = example_calls(pl_module, todo) or _calls_of_first_batch(trainer, pl_module, todo)
        prepared = self.apply(pl_module, networks, calls)
        if single:
            require_tensors(prepared)

    def _require_same(self, name: str, network: PreparedModel) -> None:
        if (network.recipe, network.target) != (self.recipe, self.target):
            raise ConfigError(
                f"{name!r} is already prepared with recipe {network.recipe.name} for target {network.target.name}, "
                f"the callback says {self.recipe.name} for {self.target.name}; give it the same, or a float network"
            )


def require_tensors(networks: Mapping[str, PreparedModel]) -> None:
    """Raise `ConfigError` for inputs that train, and that no file takes: a dict in a dict, say."""
    for name, network in networks.items():
        flat_inputs(network.graphs[False], network.example_inputs, f"forward of {name!r}")


def uncompiled(pl_module: pl.LightningModule) -> None:
    """Take a module out of `torch.compile`, in which Lightning trains the steps of `fit(torch.compile(module))`."""
    if pl_module._compiler_ctx is None:
        return
    to_uncompiled(pl_module)
    for hook in COMPILED:  # bound methods of its class, now as attributes
        vars(pl_module).pop(hook, None)
    logger.warning(
        "%s trains without torch.compile, which would hold its steps as they were before it was prepared; "
        "compile='regional' helps",
        type(pl_module).__name__,
    )


def stop_waiting(pl_module: pl.LightningModule) -> None:
    """The module's own `configure_model` again."""
    if _waits(pl_module):
        del pl_module.configure_model


def _waits(pl_module: pl.LightningModule) -> bool:
    return hasattr(vars(pl_module).get("configure_model"), "waits")


def prepare_before_setup(pl_module: pl.LightningModule) -> None:
    """Prepare now, for a callback that takes the module before its `setup`; one with `configure_model` is another's."""
    if type(pl_module).configure_model is pl.LightningModule.configure_model and _waits(pl_module):
        pl_module.configure_model()


def require_own_average(trainer: pl.Trainer, owner: pl.Callback) -> None:
    """Raise `ConfigError` for averages that cannot be had.

    Lightning's SWA takes its statistics of BatchNorm in an epoch in which they stand; what stands before `owner`, the
    callback that prepares, copies a network that is about to be replaced.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[: callbacks.index(owner)]:
        if isinstance(callback, WeightAveraging):
            raise ConfigError(
                f"{type(callback).__name__} would average the float network, which QuantizationAwareTraining replaces; "
                "let it stand behind QuantizationAwareTraining in callbacks"
            )
    for callback in callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise ConfigError(
                f"{type(callback).__name__} resets the statistics of BatchNorm and takes them in an epoch after "
                "training, when QuantizationAwareTraining has frozen them: they would stay 0 and 1. Average with "
                "qat.training.AveragedWeights, and ReestimatedBatchNorm behind it for new statistics"
            )


def require_own_parameters(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Raise `ConfigError` when an optimizer trains parameters that preparation has replaced."""
    own = {id(p) for p in pl_module.parameters()}
    trained = [p for o in trainer.optimizers for group in o.param_groups for p in group["params"]]
    strays = sum(id(p) not in own for p in trained)
    if strays:
        raise ConfigError(
            f"{strays} of the optimizers' {len(trained)} parameters are not in {type(pl_module).__name__}: they were "
            "taken before it was prepared. Build optimizers in configure_optimizers, from self.parameters()"
        )


def require_own_layers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Raise `ConfigError` when layers are pruned that preparation has replaced."""
    own = set(pl_module.modules())
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelPruning) and any(m not in own for m, _ in callback._parameters_to_prune or ()):
            raise ConfigError(
                f"{type(callback).__name__} prunes layers that were replaced when {type(pl_module).__name__} was "
                "prepared. Let it stand behind QuantizationAwareTraining in callbacks, and find its layers itself; for "
                "layers of your choice, or with setup or configure_model, call prepare of the callback before fit"
            )


def _calls_of_stage(
    trainer: pl.Trainer, pl_module: pl.LightningModule, networks: Mapping[str, nn.Module], stage: str
) -> dict[str, Call]:
    with looking_ahead(stage_loader(trainer, stage), 1, limits=1) as batches:
        for batch in batches:
            return Step(pl_module, networks, hook=STEPS[stage]).calls(batch)
    raise ConfigError(f"the data of {stage} has no batch to prepare the network with; set example_input_array")


def _calls_of_first_batch(
    trainer: pl.Trainer, pl_module: pl.LightningModule, networks: Mapping[str, nn.Module]
) -> dict[str, Call]:
    with looking_ahead(training_loader(trainer), 1) as batches:
        for batch in batches:
            return Step(pl_module, networks).calls(batch)
    raise ConfigError("the training data has no batch to prepare the network with")
