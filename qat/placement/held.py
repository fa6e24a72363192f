"""The prepared networks that a module holds, at any depth, and the one that may be its own forward.

That one is no child of the module: both hold the same layers, which would be there twice.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from qat.placement.prepared import PreparedModel, batchnorms

OWN = "forward"  # the name of a network that is a module's own forward
CHILD = "own_forward"  # what stands in its place


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


def own_network(module: nn.Module) -> PreparedModel | None:
    """The network that stands in the place of the module's forward, if one does."""
    child = module._modules.get(CHILD)
    return child.network if isinstance(child, OwnForward) else None


def prepared_networks(module: nn.Module) -> dict[str, PreparedModel]:
    """The prepared models below a module, by attribute path; under `OWN` the one that is its forward."""
    found = {name: m for name, m in module.named_modules() if isinstance(m, PreparedModel)}
    own = own_network(module)
    return found if own is None else {**found, OWN: own}
