"""Integer grids as frozen values: how many bits, signed or not, where zero sits, one scale for what.

    q = clamp(round(x / s) + z, qmin, qmax)     y = (q - z) * s

Nothing here holds a tensor; every other room speaks about grids in these words.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from qat.errors import ConfigError

E = TypeVar("E", bound=StrEnum)
MIN_BITS, MAX_BITS = 2, 8  # int8 storage; one bit leaves a symmetric narrow grid with zero alone


class Scheme(StrEnum):
    """Where zero sits on the grid."""

    AFFINE = "affine"  # zero point chosen so that [low, high] fills the grid
    SYMMETRIC = "symmetric"  # zero point fixed: 0 when signed, 2^(bits-1) when unsigned


class Granularity(StrEnum):
    """What shares one scale."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"  # one scale per slice of `IntSpec.axis`


@dataclass(frozen=True, kw_only=True)
class IntSpec:
    """One integer grid.

    Args:
        bits: width of the grid, 2 to 8; storage is int8 or uint8 whatever the width.
        signed: whether the grid starts below zero.
        narrow: leave out the lowest integer, so that a signed grid is its own mirror image.
        scheme: affine or symmetric.
        granularity: per tensor or per channel.
        axis: the channel axis when per channel.

    Raises:
        ConfigError: for a width outside 2-8 or an unsigned narrow grid.
    """

    bits: int = 8
    signed: bool = True
    narrow: bool = False
    scheme: Scheme = Scheme.SYMMETRIC
    granularity: Granularity = Granularity.PER_TENSOR
    axis: int = 0

    def __post_init__(self) -> None:
        """Validate, and turn YAML's strings into enum members."""
        object.__setattr__(self, "scheme", _member(Scheme, self.scheme, "scheme"))
        object.__setattr__(self, "granularity", _member(Granularity, self.granularity, "granularity"))
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(f"need {MIN_BITS} <= bits <= {MAX_BITS}, got bits={self.bits!r}")
        if self.narrow and not self.signed:
            raise ConfigError("narrow=True drops the lowest integer of a signed grid; use signed=True or narrow=False")

    @property
    def qmin(self) -> int:
        """Lowest integer of the grid."""
        return (-(2 ** (self.bits - 1)) + int(self.narrow)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest integer of the grid."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest and the highest integer of this grid: `(-2, 1)` for `int2[-2,1]`."""
        return self.qmin, self.qmax

    @property
    def with_mirror_image(self) -> tuple[int, int]:
        """Ends of the integers of this grid and of their negatives: `(-2, 2)` for `int2[-2,1]`."""
        most = max(self.qmax, -self.qmin)
        return -most, most

    @property
    def symmetric_zero_point(self) -> int:
        """The zero point that the symmetric scheme fixes."""
        return 0 if self.signed else 2 ** (self.bits - 1)

    @property
    def short(self) -> str:
        """`int8`, `uint8`."""
        return f"{'int' if self.signed else 'uint'}{self.bits}"

    def __str__(self) -> str:
        """The whole grid: `int8[-127,127] symmetric per_channel`."""
        return f"{self.short}[{self.qmin},{self.qmax}] {self.scheme} {self.granularity}"


def _member(enum: type[E], value: str, what: str) -> E:
    try:
        return enum(value)
    except ValueError:
        raise ConfigError(f"unknown {what} {value!r}; known: {', '.join(enum)}") from None
