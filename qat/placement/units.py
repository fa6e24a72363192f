"""The tensors of a prepared model that have a grid of their own, by the names that `override` matches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A weight, or the value that an operator puts out.

    Args:
        name: of the operator, as the plan has it.
        tensor: `weight` or `activation`.
        quantizer: path of its fake-quant module.
        size: values; of an activation, for one example.
        open: whether its width is the recipe's, which no exception and no override fixed.
    """

    name: str
    tensor: str
    quantizer: str
    size: int
    open: bool
