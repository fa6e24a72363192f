"""Resumption: what a checkpoint must have in common with the run that goes on from it.

quantizers                      a float training has none to go on with; its weights begin another one
the same recipe and target      its ranges mean something else otherwise
quantizers in the same places   another exclude, or another model, has others
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import pytorch_lightning as pl

from qat.errors import CheckpointError, ConfigError
from qat.models.state_file import listing
from qat.placement import PreparedModel, quantizers
from qat.placement.held import prepared_networks
from qat.provenance import KEY, differences, unreadable
from qat.recipe import QuantRecipe
from qat.target import Target
from qat.training.restorable import WAY_OUT, strange_structure, strange_weights
from qat.training.saved import join, prefix

LISTED = 5  # names of an error message
HOOK = "on_load_checkpoint"


def look_before_loading(
    pl_module: pl.LightningModule, recipe: QuantRecipe, target: Target, prepare: Callable[[], None] = lambda: None
) -> None:
    """Look at a checkpoint before its tensors are copied: Lightning asks callbacks only afterwards.

    Args:
        pl_module: takes the checkpoint.
        recipe: of the run.
        target: of the run.
        prepare: prepares the module, if the checkpoint is of a prepared one.
    """
    stop_looking(pl_module)

    def look(checkpoint: dict[str, Any]) -> None:
        if wrong := strange_structure(checkpoint):  # as Lightning's own reader takes it
            raise CheckpointError(f"the checkpoint is damaged, or none of a Trainer's: {wrong}. {WAY_OUT}")
        if KEY in checkpoint:
            prepare()
        if prepared_networks(pl_module):
            require_readable(checkpoint)
            join(checkpoint)
        require_prepared_alike(pl_module, checkpoint, recipe, target)
        own = look.own or MethodType(type(pl_module).on_load_checkpoint, pl_module)  # type: ignore[attr-defined]
        own(checkpoint)
        if wrong := strange_weights(pl_module, checkpoint["state_dict"]):  # own may have renamed or added
            raise CheckpointError(
                f"the checkpoint's weights are not those of {type(pl_module).__name__}: {wrong}. Resume with the same "
                "model"
            )

    look.own = vars(pl_module).get(HOOK)  # type: ignore[attr-defined]
    pl_module.on_load_checkpoint = look  # type: ignore[method-assign]


def stop_looking(pl_module: pl.LightningModule) -> None:
    """The module's own `on_load_checkpoint` again: what was to be loaded is loaded, or never will be."""
    look = vars(pl_module).get(HOOK)
    if look is None or not hasattr(look, "own"):
        return
    if look.own is None:  # it was the class's
        del pl_module.on_load_checkpoint
    else:
        pl_module.on_load_checkpoint = look.own  # type: ignore[method-assign]


def require_readable(checkpoint: Mapping[str, Any]) -> None:
    """Raise `ConfigError` where what a checkpoint says of its ranges cannot be read."""
    about = checkpoint.get(KEY)
    if about is not None and (wrong := unreadable(about)):
        raise ConfigError(f"the checkpoint cannot be resumed here: {wrong}")


def require_prepared_alike(
    pl_module: pl.LightningModule, checkpoint: Mapping[str, Any], recipe: QuantRecipe, target: Target
) -> None:
    """Raise `ConfigError` where a checkpoint's ranges would mean something else in this module."""
    require_readable(checkpoint)
    about = checkpoint.get(KEY)
    if about and (unlike := differences(about, recipe, target)):
        raise ConfigError(
            f"the checkpoint was trained with recipe {about['recipe']} for target {about['target']}, this run has "
            f"{recipe.name} for {target.name} ({listing(unlike)}); resume with the same, or start from "
            "its float weights"
        )
    networks, state = prepared_networks(pl_module), checkpoint.get("state_dict", {})
    if networks and KEY not in checkpoint and not any(map(_quantizer_of, state)):
        kind = type(pl_module).__name__
        raise ConfigError(
            f"the checkpoint is of a float training, it has no quantizers, and {kind} is quantized here. Begin with "
            f"its weights, {kind}.load_from_checkpoint(path), and fit without ckpt_path"
        )
    for name, network in networks.items():
        _require_same_quantizers(name, network, state)


def _require_same_quantizers(name: str, network: PreparedModel, state: Mapping[str, Any]) -> None:
    begin = prefix(name)
    ours = {f"{begin}{q}" for q in quantizers(network)}
    theirs = {q for key in state if key.startswith(begin) and (q := _quantizer_of(key)) is not None}
    if theirs == ours:
        return
    sides = {"only in the checkpoint": theirs - ours, "only in this run": ours - theirs}
    listed = "; ".join(f"{what}: {', '.join(sorted(q)[:LISTED])}" for what, q in sides.items() if q)
    raise ConfigError(
        f"{name!r} was prepared differently for the checkpoint, its quantizers are in other places ({listed}). Resume "
        "with the same exclude and the same model"
    )


def _quantizer_of(key: str) -> str | None:
    """The quantizer that a tensor of a state dict belongs to; what it holds there is its own business.

    conv.weight_quantizer.step -> conv.weight_quantizer        add_quantizer_1.observer.low -> add_quantizer_1
    """
    parts = key.split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts[:-1]) if "_quantizer" in part), None)
