"""Networks: the attributes of a LightningModule that are quantized, found or named.

Found means: the only child with parameters that is no loss and no metric, or of several the one that is called
`model`, `net` or `network`. Layers that lie directly on the module are one network, its own forward (own.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.loss import _Loss
from torchmetrics import Metric, MetricCollection

from qat.errors import ConfigError, unknown_name
from qat.placement import PreparedModel
from qat.placement.held import OWN, own_network
from qat.training.own import has_forward, install

LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
USUAL = ("model", "net", "network")


def find_networks(module: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The networks below a LightningModule, by attribute path.

    Args:
        module: whose attributes are searched.
        names: the attributes, dots allowed; `forward` for what the module's own forward computes; None searches.

    Returns:
        By name; under `forward` the module itself, until it is prepared.

    Raises:
        ConfigError: nothing found, several found, or a name that is no module; says how to name them.
    """
    if names is not None:
        return {name: _named(module, name) for name in names}
    if (own := own_network(module)) is not None:
        return {OWN: own}
    candidates = candidate_networks(module)
    direct = [n for n, child in candidates.items() if isinstance(child, LAYERS)]
    if len(direct) == len(candidates) > 0 and has_forward(module):
        return {OWN: module}
    prepared: dict[str, nn.Module] = {n: child for n, child in candidates.items() if isinstance(child, PreparedModel)}
    usual = {n: child for n, child in candidates.items() if n in USUAL}
    for choice in (prepared, candidates, usual):
        if len(choice) == 1:
            return choice
    if prepared:
        return prepared
    owner = type(module).__name__
    if not candidates:
        for name, child in module.named_children():
            _require_unconverted(name, child)
        raise ConfigError(
            f"{owner} has no child with parameters to quantize. Assign the network to an attribute, "
            "e.g. self.model, in __init__, setup or configure_model"
        )
    if direct and has_forward(module):
        return {OWN: module}
    quoted = ", ".join(map(repr, candidates))
    if direct:
        raise ConfigError(
            f"the layers {quoted} lie directly on {owner}, which has no forward. Say in forward what they compute, and "
            "call self(x) in training_step; or put them into one nn.Module, e.g. self.model"
        )
    raise ConfigError(
        f"{owner} has several networks: {quoted}. Name what to quantize: modules=[{quoted}], or modules={OWN!r} for "
        "what its own forward computes"
    )


def candidate_networks(module: nn.Module) -> dict[str, nn.Module]:
    """Children with parameters that are neither loss nor metric."""
    return {
        name: child
        for name, child in module.named_children()
        if not isinstance(child, _Loss | Metric | MetricCollection) and next(child.parameters(), None) is not None
    }


def replace_network(module: nn.Module, name: str, network: nn.Module) -> None:
    """Put `network` in the place of the attribute `name`, dots allowed; or of the module's own forward."""
    if name == OWN:
        assert isinstance(network, PreparedModel)
        install(module, network)
        return
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, network)


def _named(module: nn.Module, name: str) -> nn.Module:
    if name == OWN and has_forward(module):
        return own_network(module) or module
    try:
        network = module.get_submodule(name)
    except AttributeError:
        known = [n for n, _ in module.named_children()]
        raise ConfigError(unknown_name(f"module of {type(module).__name__}", name, known)) from None
    _require_unconverted(name, network)
    return network


def _require_unconverted(name: str, network: nn.Module) -> None:
    if "prepared" in getattr(network, "meta", {}):  # where qat.convert says what it came from
        raise ConfigError(
            f"{name!r} is an integer model from qat.convert, which has nothing to train; give it the float network, or "
            "the prepared one that it was converted from"
        )
