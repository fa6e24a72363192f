"""Weights as their quantizers see them: with the BatchNorm's factor on them, where one scale serves a whole weight.

seen = w * f        f = 1 per channel; gamma / sqrt(var + eps) per tensor, at its running value (layers/weighted.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn

from qat.functional.affine import broadcast
from qat.layers import FakeQuantWeight
from qat.placement.prepared import PreparedModel
from qat.quantizers import FakeQuantize

Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenWeight:
    """The weight of one layer.

    Args:
        layer: holds it.
        norm: the BatchNorm that is folded into it before it is quantized; None for none.
    """

    layer: FakeQuantWeight
    norm: Norm | None

    @property
    def quantizer(self) -> FakeQuantize:
        """Of the weight."""
        return self.layer.weight_quantizer

    @torch.no_grad()
    def factor(self) -> Tensor:
        """The f above, `[C_out, 1, ...]` or a scalar."""
        if self.norm is None:
            return torch.ones((), device=self.layer.weight.device)
        return self.layer.fold(self.norm.weight, cast(Tensor, self.norm.running_var))

    def scale(self) -> Tensor:
        """Of the quantizer, without gradient; broadcasts against the weight."""
        return broadcast(self.quantizer.scale.detach(), self.layer.weight, self.quantizer.spec.axis)

    def seen(self) -> Tensor:
        """What the quantizer gets, without gradient; zero where the weight is pruned."""
        return self.layer.kept_weight().detach() * self.factor()

    @torch.no_grad()
    def integers(self) -> Tensor:
        """What a runtime stores for it, int8, shaped like the weight."""
        return self.quantizer.integers(self.seen())


def seen_weights(prepared: PreparedModel) -> dict[str, SeenWeight]:
    """The weights of all fake-quant convolutions and linear layers, by the name of the layer."""
    modules = dict(prepared.named_modules())
    norms: dict[str, Norm] = {}
    for node in prepared.graphs[False].nodes:
        if node.op == "call_module" and isinstance(norm := modules.get(_after(node)), Norm):
            norms.setdefault(str(node.target), norm)
    layers = {name: m for name, m in modules.items() if isinstance(m, FakeQuantWeight)}
    return {
        name: SeenWeight(layer=layer, norm=norms[name] if layer.norm_eps is not None else None)
        for name, layer in layers.items()
    }


def _after(node: fx.Node) -> str:
    """The module that alone reads a value; empty for none."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return str(user.target) if user is not None and user.op == "call_module" else ""
