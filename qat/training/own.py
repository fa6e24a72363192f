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
from qat.placement.prepared import batchnorms

OWN = "forward"  # the name of such a network
CHILD = "own_forward"
REGISTRIES = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class OwnForward(nn.Module):
    """What stands in the place of a module's forward: a child without layers, through which modes reach the network."""

    _network: tuple[PreparedModel]

    def __init__(self, network: PreparedModel) -> None:
        self.__dict__["_network"] = (network,)  # a tuple, so that it is no submodule
        super().__init__()
        self.training = network.training

    def __setattr__(self, name: str, value: Any) -> None:
        """Lightning sets modes one by one, after a validation."""
        super().__setattr__(name, value)
        if name == "training":
            self.network.training = value

    @property
    def network(self) -> PreparedModel:
        """What it computes."""
        return self._network[0]

    def train(self, mode: bool = True) -> OwnForward:
        """Switch mode; frozen BatchNorm statistics stay frozen."""
        super().train(mode)
        if self.network.batchnorm_frozen:
            for norm in batchnorms(self.network):
                norm.training = False
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own forward."""
        return self.network(*args, **kwargs)


def has_forward(module: nn.Module) -> bool:
    """Whether the module says what its layers compute."""
    return not isinstance(module, pl.LightningModule) or is_overridden("forward", module)


def own_network(module: nn.Module) -> PreparedModel | None:
    """The network that stands in the place of the module's forward, if one does."""
    child = module._modules.get(CHILD)
    return child.network if isinstance(child, OwnForward) else None


def prepared_networks(module: nn.Module) -> dict[str, PreparedModel]:
    """The prepared models below a module, by attribute path; under `OWN` the one that is its forward."""
    found = {name: m for name, m in module.named_modules() if isinstance(m, PreparedModel)}
    own = own_network(module)
    return found if own is None else {**found, OWN: own}


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
