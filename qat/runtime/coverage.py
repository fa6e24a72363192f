"""Integer coverage, read back from what a runtime executes: not what the plan meant, what became of it.

An *island* is an operator in float between two that run on integers: data leaves the integers and comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an executed operator computes on."""

    INTEGER = "integer"
    FLOAT = "float"
    BORDER = "border"  # quantize, dequantize, a change of layout: between the two


@dataclass(frozen=True, kw_only=True)
class Executed:
    """One operator as the runtime executes it.

    Args:
        name: the runtime's name for it.
        op: what it computes, in the runtime's words.
        kind: on what.
        inputs: names of the operators whose results it reads.
    """

    name: str
    op: str
    kind: Kind
    inputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`QLinearConv conv1`."""
        return f"{self.op} {self.name}"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """All operators that a runtime executes, in its order.

    Args:
        runtime: its name.
        operators: what it executes.
        delegates: how many pieces were handed over to a backend; None where there is no such thing.
    """

    runtime: str
    operators: tuple[Executed, ...]
    delegates: int | None = None

    @property
    def integer(self) -> tuple[Executed, ...]:
        """Operators that run on integers."""
        return tuple(o for o in self.operators if o.kind is Kind.INTEGER)

    @property
    def in_float(self) -> tuple[Executed, ...]:
        """Operators that run in float."""
        return tuple(o for o in self.operators if o.kind is Kind.FLOAT)

    @property
    def islands(self) -> tuple[Executed, ...]:
        """Operators in float that have integer operators both before and behind them."""
        after = _reached(self.operators)
        before = _reached(_turned(self.operators))
        return tuple(o for o in self.in_float if o.name in after and o.name in before)

    def __str__(self) -> str:
        """`41 integer, 2 float, 1 island: Resize up1`."""
        found = self.islands
        pieces = "" if self.delegates is None else f", {self.delegates} delegate{'s' if self.delegates != 1 else ''}"
        many = "s" if len(found) > 1 else ""
        islands = f", {len(found)} island{many}: {', '.join(map(str, found))}" if found else ", no island"
        return f"{self.runtime}: {len(self.integer)} integer, {len(self.in_float)} float{pieces}{islands}"


def _reached(operators: Sequence[Executed]) -> set[str]:
    """Names of operators that read, however indirectly, from an integer operator."""
    found: set[str] = set()
    integer = {o.name for o in operators if o.kind is Kind.INTEGER}
    for operator in operators:
        if any(name in integer or name in found for name in operator.inputs):
            found.add(operator.name)
    return found


def _turned(operators: Sequence[Executed]) -> list[Executed]:
    """The same operators from last to first, each reading from those that read it."""
    readers: dict[str, list[str]] = {o.name: [] for o in operators}
    for operator in operators:
        for name in operator.inputs:
            readers.setdefault(name, []).append(operator.name)
    return [Executed(name=o.name, op=o.op, kind=o.kind, inputs=tuple(readers[o.name])) for o in reversed(operators)]
