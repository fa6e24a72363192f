"""What a mixed recipe may spend: mean bits of weights, mean bits of activations, bytes of weights.

    mean bits = sum n_i b_i / sum n_i        over the tensors whose width is open; n_i: values (of one example)
    bytes     = sum ceil(n_i / 2) if b_i <= 4 and the file packs, else n_i        over all integer weights

What `first_last_bits`, `sum_bits` and `override` fix is outside the mean: 5 means what `bits: 5` means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qat.errors import ConfigError, unknown_name
from qat.spec import MAX_BITS, MIN_BITS

TENSORS = ("weight", "activation")
MB = 1e6  # bytes


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits that hold together; a tensor without one keeps the recipe's width.

    Args:
        weight: mean bits of weights.
        activation: mean bits of activations.
        weight_bytes: of all integer weights, as the file stores them.
    """

    weight: float | None = None
    activation: float | None = None
    weight_bytes: float | None = None

    @classmethod
    def parse(cls, budget: float | Mapping[str, float] | None, budget_mb: float | None = None) -> Budget | None:
        """The limits that a recipe's two keys set; None for none.

        Args:
            budget: mean bits of both tensors, or of those that a mapping names.
            budget_mb: megabytes (10^6 bytes) of integer weights.

        Raises:
            ConfigError: no number, or one out of range.
        """
        if budget is None and budget_mb is None:
            return None
        bits: Mapping[str, Any] = {} if budget is None else dict.fromkeys(TENSORS, budget)
        if isinstance(budget, Mapping):
            bits = budget
            for key in bits:
                if key not in TENSORS:
                    raise ConfigError(unknown_name("key of quant.budget", str(key), TENSORS))
        for value in bits.values():
            if not _is_number(value) or not MIN_BITS <= value <= MAX_BITS:
                raise ConfigError(
                    f"need {MIN_BITS} <= quant.budget <= {MAX_BITS}, mean bits, or {{weight: BITS, activation: BITS}}, "
                    f"got {budget!r}"
                )
        if budget_mb is not None and (not _is_number(budget_mb) or budget_mb <= 0):
            raise ConfigError(f"need quant.budget_mb > 0, megabytes of integer weights, got {budget_mb!r}")
        return cls(**bits, weight_bytes=None if budget_mb is None else budget_mb * MB)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Whose widths are open: weight, activation or both."""
        limited = {"weight": (self.weight, self.weight_bytes), "activation": (self.activation,)}
        return tuple(which for which, limits in limited.items() if any(limit is not None for limit in limits))

    def mean_bits(self, which: str) -> float | None:
        """The limit of `weight` or `activation`."""
        return self.weight if which == "weight" else self.activation

    def __str__(self) -> str:
        """`mean bits 5 for weights and activations`, `weights of at most 0.2 MB`."""
        told = [f"{self.mean_bits(w):g} for {w}s" for w in TENSORS if self.mean_bits(w) is not None]
        parts = [f"mean bits {' and '.join(told)}"] if told else []
        if self.weight_bytes is not None:
            parts.append(f"weights of at most {self.weight_bytes / MB:g} MB")
        return ", ".join(parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
