"""Can a Trainer restore this checkpoint? Asked before it tries, which would end in a traceback, or in silence.

structure     what Lightning reads has the types that it writes (CarefulCheckpointIO, for every file)
weights       the module's names, shapes and kinds of number (before they are copied)
training      as many optimizers and schedules, states of the parameters' shapes, counters that count
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from qat.errors import CheckpointError
from qat.models.state_file import listing
from qat.training.classifier import HORIZONS

VERSION = "pytorch-lightning_version"
TYPES: Mapping[str, tuple[type, ...]] = {
    "epoch": (int,),
    "global_step": (int,),
    VERSION: (str,),
    "state_dict": (dict,),
    "loops": (dict,),
    "callbacks": (dict,),
    "optimizer_states": (list,),
    "lr_schedulers": (list,),
    "hyper_parameters": (dict,),
}
# states of torch.optim's that have the shape of their parameter; other optimizers call theirs otherwise
LIKE_PARAMETERS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg"}
WAY_OUT = "Resume from a file that a Trainer wrote, checkpoints/last.ckpt of a run; for weights alone use init_from"


def strange_structure(content: Mapping[str, Any]) -> str:
    """What no Trainer writes, in words; empty for a checkpoint whose parts have the right types."""
    for key, types in TYPES.items():
        if key in content and (not isinstance(content[key], types) or isinstance(content[key], bool)):
            return f"its {key} is of type {type(content[key]).__name__}, not {types[0].__name__}"
    for key in (VERSION, "state_dict"):
        if key not in content:
            return f"it has no {key}"
    parts = content[VERSION].split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        return f"its {VERSION} is {content[VERSION]!r}"
    wrong = [f"{k!r} ({type(v).__name__})" for k, v in content["state_dict"].items() if not isinstance(k, str)]
    if wrong:
        return f"its state_dict has keys that are no names: {listing(wrong)}"
    fit_loop = content.get("loops", {}).get("fit_loop", {})
    if not isinstance(fit_loop, dict):
        return f"its loops.fit_loop is of type {type(fit_loop).__name__}, not dict"
    for i, state in enumerate(content.get("optimizer_states", [])):
        groups = state.get("param_groups") if isinstance(state, dict) else None
        if not isinstance(groups, list) or not isinstance(state.get("state"), dict):
            return f"its optimizer_states[{i}] has no state and param_groups"
        if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
            return f"its optimizer_states[{i}].param_groups have no params"
        if not all(type(index) is int for group in groups for index in group["params"]):
            return f"its optimizer_states[{i}].param_groups name parameters by something else than numbers"
    for i, state in enumerate(content.get("lr_schedulers", [])):
        if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            return f"its lr_schedulers[{i}] is no mapping of names"
    return ""


def strange_weights(pl_module: pl.LightningModule, state: Mapping[str, Any]) -> str:
    """In what a state dict is not the module's, in words; what is missing or more counts where loading is strict."""
    own = {key: value for key, value in pl_module.state_dict().items() if isinstance(value, Tensor)}
    wrong = [f"{k!r} is of type {type(v).__name__}" for k, v in state.items() if k in own and not isinstance(v, Tensor)]
    both = {k: (v, own[k]) for k, v in state.items() if k in own and isinstance(v, Tensor)}
    wrong += [f"{k!r} is {list(a.shape)}, need {list(b.shape)}" for k, (a, b) in both.items() if a.shape != b.shape]
    wrong += [f"{k!r} is {a.dtype}, need {b.dtype}" for k, (a, b) in both.items() if _kind(a) != _kind(b)]
    if wrong:
        return listing(wrong)
    if not pl_module.strict_loading:
        return ""
    missing, more = (
        [repr(k) for k in own if k not in state],
        [repr(k) for k in state if k not in pl_module.state_dict()],
    )
    sides = {"only in the module": missing, "only in the checkpoint": more}
    return "; ".join(f"{side}: {listing(names)}" for side, names in sides.items() if names)


def require_restorable(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` where optimizers, schedules, loops or callbacks of a checkpoint are not the Trainer's.

    Args:
        trainer: whose optimizers are built, and nothing of whose training is restored yet.
        checkpoint: of the right structure.
    """
    if reason := _strange_training(trainer, checkpoint):
        raise CheckpointError(f"the checkpoint cannot be resumed here: {reason}. {WAY_OUT}")


def _strange_training(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> str:
    states, schedules = checkpoint.get("optimizer_states", []), checkpoint.get("lr_schedulers", [])
    configs = trainer.lr_scheduler_configs
    for what, given, own in (("optimizers", states, trainer.optimizers), ("schedules", schedules, configs)):
        if len(given) != len(own):
            return f"it has {len(given)} {what}, and this training has {len(own)}"
    for i, (state, optimizer) in enumerate(zip(states, trainer.optimizers, strict=True)):
        if reason := _strange_optimizer(state, optimizer):
            return f"its optimizer_states[{i}] {reason}"
    for i, (state, config) in enumerate(zip(schedules, configs, strict=True)):
        if reason := next(_unlike(state, config.scheduler.state_dict(), "", partial=True), ""):
            return f"its lr_schedulers[{i}]{reason}"
        if "last_epoch" in config.scheduler.state_dict() and "last_epoch" not in state:
            return f"its lr_schedulers[{i}] has no last_epoch"
        if planned := next(_otherwise_planned(state, config.scheduler.state_dict()), None):
            return (
                f"its schedule was planned for {planned[0]} steps, and this training has {planned[1]}; go on with its "
                "epochs, batch size and number of processes"
            )
    loop = checkpoint.get("loops", {}).get("fit_loop", {})
    for key, own in trainer.fit_loop.state_dict().items():
        if key in loop and not key.endswith("state_dict"):
            if reason := next(_unlike(loop[key], own, ""), ""):
                return f"its loops.fit_loop.{key}{reason}"
        elif key in loop and not isinstance(loop[key], dict):
            return f"its loops.fit_loop.{key} is of type {type(loop[key]).__name__}, not dict"
    steps = loop.get("epoch_loop.state_dict", {}).get("_batches_that_stepped", 0)
    if type(steps) is not int or steps < 0:
        return f"its loops.fit_loop counts {steps!r} steps"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        given = checkpoint.get("callbacks", {}).get(callback.state_key)
        if given is not None and (reason := next(_unlike(given, callback.state_dict(), "", partial=True), "")):
            return f"its callbacks.{callback.state_key}{reason}"
    done = loop.get("epoch_progress", {}).get("current", {}).get("completed", 0)
    if trainer.max_epochs is not None and -1 < trainer.max_epochs < done:
        return f"{done} epochs of it are done, and this training has {trainer.max_epochs}"
    return ""


def _otherwise_planned(state: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Ends that schedules were planned for, and what they are here, where these differ; also of those inside one."""
    for key in HORIZONS:
        if key in state and key in own and state[key] != own[key]:
            yield state[key], own[key]
    for inner, other in zip(state.get("_schedulers", ()), own.get("_schedulers", ()), strict=False):
        yield from _otherwise_planned(inner, other)


def _strange_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> str:
    given, own = state["param_groups"], optimizer.param_groups
    sizes = [[len(group["params"]) for group in groups] for groups in (given, own)]
    if sizes[0] != sizes[1]:
        return f"has groups of {sizes[0]} parameters, and this training of {sizes[1]}"
    parameters = dict(zip((i for g in given for i in g["params"]), (p for g in own for p in g["params"]), strict=True))
    for i, (group, other) in enumerate(zip(given, own, strict=True)):
        plain = {key: value for key, value in other.items() if key != "params"}
        if reason := next(_unlike(group, plain, "", partial=True), ""):
            return f"param_groups[{i}]{reason}"
        if "lr" not in group:
            return f"param_groups[{i}] has no lr"
    for index, values in state["state"].items():
        if index not in parameters or not isinstance(values, dict):
            return f"has a state for {index!r}, which is none of its parameters"
        for name, value in values.items():
            shape = parameters[index].shape
            if name in LIKE_PARAMETERS and value is not None and getattr(value, "shape", None) != shape:
                found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                return f"has a {name} of {found} for a parameter of {list(shape)}"
            if name == "step" and not _is_number(value):
                return f"has a step that is {_what(value)}, not a number"
    return ""


def _unlike(given: Any, own: Any, path: str, *, partial: bool = False) -> Iterator[str]:
    """Where a value has another type than that of this Trainer; with `partial` keys may be missing."""
    if isinstance(own, Mapping):
        if not isinstance(given, Mapping):
            yield f"{path} is of type {type(given).__name__}, not dict"
            return
        for key, value in own.items():
            if key in given:
                yield from _unlike(given[key], value, f"{path}.{key}", partial=partial)
            elif not partial:
                yield f"{path} has no {key}"
    elif isinstance(own, bool) or (isinstance(own, int) and not partial):
        if type(given) is not type(own):
            yield f"{path} is of type {type(given).__name__}, not {type(own).__name__}"
        elif not isinstance(given, bool) and given < 0:
            yield f"{path} is {given}"
    elif isinstance(own, int | float) and not _is_number(given):
        yield f"{path} is {_what(given)}, not a number"
    elif isinstance(own, list | tuple) and not isinstance(given, list | tuple):
        yield f"{path} is of type {type(given).__name__}, not {type(own).__name__}"


def _is_number(value: Any) -> bool:
    """An int, a float, or a tensor without dimensions, as capturable optimizers keep their rate and step."""
    if isinstance(value, Tensor):
        return value.dim() == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


def _what(value: Any) -> str:
    return f"a tensor of {list(value.shape)}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _kind(x: Tensor) -> tuple[bool, bool, bool]:
    return x.is_floating_point(), x.is_complex(), x.dtype is torch.bool
