"""A layer whose weights are stored as integers, and read as floats: weight-only quantization.

w = q * s       q int8 [C_out, ...], s one per output channel; the layer's own forward computes with w

The layer keeps its class's forward: whatever it computes, it computes it from the dequantized weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from qat.layers.adopt import adopt

OPS = torch.ops.quantized_decomposed


class StoredWeights(nn.Module):
    """Mixin: parameters that are integers with scales, under `NAME_integers` and `NAME_scale`."""

    grids: Mapping[str, tuple[int, int]]

    def __getattr__(self, name: str) -> Any:
        """A stored parameter as floats; everything else as any module has it."""
        if name in self.__dict__.get("grids", ()):
            return self.dequantized(name)
        return super().__getattr__(name)

    def dequantized(self, name: str) -> Tensor:
        """The parameter `name` as floats."""
        buffers, (low, high) = self._buffers, self.grids[name]
        q, scale, zero = (buffers[f"{name}_{what}"] for what in ("integers", "scale", "zero_point"))
        result: Tensor = OPS.dequantize_per_channel.default(q, scale, zero, 0, low, high, torch.int8)
        return result

    @property
    def _flat_weights(self) -> list[Tensor]:
        """What `nn.LSTM` and `nn.GRU` keep a list of, read anew."""
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        """They have no list to keep."""

    def _weights_have_changed(self) -> bool:
        return False


_CLASSES: dict[type[nn.Module], type[StoredWeights]] = {}


def with_stored(layer: nn.Module, weights: Mapping[str, tuple[Tensor, Tensor, int, int]]) -> StoredWeights:
    """The layer, with integers in place of parameters.

    Args:
        layer: any layer; untouched.
        weights: by the parameter's name: int8 integers, scale (scalar or one per slice of the first axis), ends.
    """
    cls = type(layer)
    if cls not in _CLASSES:
        _CLASSES[cls] = type(f"Stored{cls.__name__}", (StoredWeights, cls), {"__doc__": f"{cls.__name__}, stored."})
    new = adopt(layer, _CLASSES[cls])
    new.__dict__.pop("_flat_weights", None)  # float weights
    if isinstance(layer, nn.RNNBase):
        new.__dict__["_flat_weight_refs"] = []
    new.grids = {name: (low, high) for name, (_, _, low, high) in weights.items()}
    for name, (q, scale, _, _) in weights.items():
        new._parameters.pop(name)
        scale = scale if scale.ndim else scale.expand(len(q))
        new.register_buffer(f"{name}_integers", q)
        new.register_buffer(f"{name}_scale", scale.clone())
        new.register_buffer(f"{name}_zero_point", torch.zeros(len(q), dtype=torch.int8))
    return new


def storable(layer: nn.Module) -> list[str]:
    """Names of the parameters that are matrices: what weight-only quantization stores as integers."""
    return [name for name, p in layer._parameters.items() if p is not None and p.ndim > 1]
