"""A module's own forward as its network: layers that lie directly on a LightningModule, and what forward makes of them.

before    layers_of(module)              the layers with the class's forward, which is what `prepare` copies
after     install(module, network)       both hold the same layers, under the names that they had; `self(x)` runs the
                                         network

The module is still what trains, saves and loads. The network is no child of it: its layers would be there twice.
"""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn
from torchmetrics import Metric

from qat.placement import PreparedModel
from qat.placement.held import CHILD, OWN, OwnForward

REGISTRIES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


def has_forward(module: nn.Module) -> bool:
    """Whether the module says what its layers compute."""
    return not isinstance(module, pl.LightningModule) or is_overridden("forward", module)


def layers_of(module: nn.Module) -> nn.Module:
    """The module for `prepare`: copies have layers of their own, and share its metrics and all that is no layer."""
    view = object.__new__(type(module))
    vars(view).update({k: v for k, v in vars(module).items() if k != OWN}, _trainer=None)
    vars(view)["__deepcopy__"] = _Copy(view)
    return view


class _Copy:
    """How a view is copied: attributes of a project, such as open files and data sets, may not copy at all."""

    def __init__(self, view: nn.Module) -> None:
        self.view = view

    def __call__(self, memo: dict[int, Any]) -> nn.Module:
        for module in self.view.modules():
            if isinstance(module, Metric):
                memo.setdefault(id(module), module)  # Lightning logs it by identity
        new = object.__new__(type(self.view))
        vars(new).update(vars(self.view))
        vars(new).update({name: copy.deepcopy(vars(self.view)[name], memo) for name in REGISTRIES})
        vars(new)["__deepcopy__"] = _Copy(new)
        return new


def install(module: nn.Module, network: PreparedModel) -> None:
    """Let the module hold the layers of its prepared network, and compute what that computes."""
    vars(module).update({name: vars(network)[name] for name in REGISTRIES})
    own = module._modules[CHILD] = OwnForward(network)
    vars(module)[OWN] = own.forward
