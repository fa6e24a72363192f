"""The plan: what is quantized how, and what is not and why. Plain values; the text is `plan.txt`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class PlannedOp:
    """One operator of the model.

    Args:
        name: module path, or scope and function for functional code.
        kind: what it computes.
        integer: whether the runtime runs it on integers.
        fused: what runs inside it: BatchNorm, activation.
        weight: grid of the weight in short, if it has one: `int7`.
        output: grid of the result in short; None when it stays on its input's grid or in float.
        why: reason for float, or a remark.
        macs: multiply-accumulates for one example.
    """

    name: str
    kind: str
    integer: bool
    fused: tuple[str, ...] = ()
    weight: str | None = None
    output: str | None = None
    why: str = ""
    macs: int = 0

    def line(self, width: int) -> str:
        """One line of the plan."""
        what = " + ".join((self.kind, *self.fused))
        weight = f"weight {self.weight}" if self.weight else ""
        output = f"-> {self.output}" if self.output else "-> grid of its input" if self.integer else ""
        text = f"{'int  ' if self.integer else 'float'}  {self.name:<{width}}  {weight:<11}  {output:<20}  {what}"
        return (text + (f"  because {self.why}" if self.why else "")).rstrip()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All operators in the order of the graph, with the recipe and target that decided."""

    model: str
    recipe: str
    target: str
    ops: tuple[PlannedOp, ...]
    grids: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def int8_mac_share(self) -> float:
        """Multiply-accumulates that run on integers, as a share of all, 0 to 1."""
        total = sum(op.macs for op in self.ops)
        return sum(op.macs for op in self.ops if op.integer) / total if total else 0.0

    @property
    def in_float(self) -> tuple[PlannedOp, ...]:
        """Operators left in float."""
        return tuple(op for op in self.ops if not op.integer)

    def __str__(self) -> str:
        """The text of `plan.txt`: stable, one operator a line."""
        width = max((len(op.name) for op in self.ops), default=0)
        head = [
            f"model {self.model}, recipe {self.recipe}, target {self.target}",
            f"{sum(op.integer for op in self.ops)} of {len(self.ops)} operators and "
            f"{100 * self.int8_mac_share:.2f} % of multiply-accumulates in integers",
            *(f"{what}: {grid}" for what, grid in self.grids),
            *self.notes,
        ]
        return "\n".join([*head, "", *(op.line(width) for op in self.ops), ""])
