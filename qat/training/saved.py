"""What a Trainer's checkpoint holds of a prepared module: the state of the float module, and the ranges beside it.

    checkpoint["state_dict"]         what the module had before it was prepared
    checkpoint["qat"]["ranges"]      what its quantizers have besides, under the names that they have in the module

So `TheirModule.load_from_checkpoint(path)` loads the float module, strictly, and where this package is not installed. A
prepared module takes both, in any Trainer: these are hooks of its own, because callbacks are asked after the tensors
are copied, and for weights alone not at all.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytorch_lightning as pl

from qat.placement import quantizers
from qat.placement.held import OWN, prepared_networks
from qat.provenance import KEY, RANGES, provenance

SAVE, LOAD = "on_save_checkpoint", "on_load_checkpoint"


class SavedApart:
    """The hooks of a module, around those that it has itself.

    Attributes:
        names: networks whose ranges go beside; what a project prepares in its own `__init__` stays in its state.
        own: hooks that the module had as attributes; None where they are its class's.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self.module = module
        self.names: set[str] = set()
        self.own: dict[str, Any] = {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the ranges out of the state, once everyone has had a say in it."""
        self._own(SAVE)(checkpoint)
        networks = {name: n for name, n in prepared_networks(self.module).items() if name in self.names}
        if not networks:
            return
        begin = tuple(f"{prefix(name)}{q}." for name, network in networks.items() for q in quantizers(network))
        state = checkpoint["state_dict"]
        apart = {key: state.pop(key) for key in list(state) if key.startswith(begin)}
        one = next(iter(networks.values()))
        checkpoint[KEY] = {**provenance(one.recipe, one.target), **checkpoint.get(KEY, {}), RANGES: apart}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put them back."""
        join(checkpoint)
        self._own(LOAD)(checkpoint)

    def _own(self, hook: str) -> Any:
        return self.own[hook] or MethodType(getattr(type(self.module), hook), self.module)


def prefix(name: str) -> str:
    """What the names of a network's tensors begin with in the state of its module."""
    return "" if name == OWN else f"{name}."


def join(checkpoint: dict[str, Any]) -> None:
    """Put the ranges of a checkpoint, where it has any, back into its state; once or more often."""
    about = checkpoint.get(KEY)
    for key, value in (about.get(RANGES) or {}).items() if isinstance(about, dict) else ():
        checkpoint["state_dict"].setdefault(key, value)


def save_apart(module: pl.LightningModule, name: str) -> None:
    """Let checkpoints of `module` hold the ranges of its network `name` beside its state, from now on."""
    saved = getattr(vars(module).get(SAVE), "__self__", None)
    if not isinstance(saved, SavedApart):
        saved = SavedApart(module)
        look: Any = vars(module).get(LOAD)
        saved.own[SAVE], vars(module)[SAVE] = vars(module).get(SAVE), saved.on_save_checkpoint
        if hasattr(look, "own"):  # the callback looks at what is loaded first (resumption.py)
            saved.own[LOAD], look.own = look.own, saved.on_load_checkpoint
        else:
            saved.own[LOAD], vars(module)[LOAD] = look, saved.on_load_checkpoint
    saved.names.add(name)
