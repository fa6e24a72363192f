"""The Pareto plot of a sweep: int8 top-1 against size and against latency, as an SVG file.

A run is on the front where no other is at least as good in both and better in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.errors import ConfigError
from qat.files import replacing

try:
    import altair as alt
except ImportError:  # a sweep without a plot is a sweep all the same
    alt = None  # type: ignore[assignment]

COSTS = {"kB": "file, kB", "ms": "latency, ms"}


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, gain) are on the front: cost falls, gain rises; equal points are on it together."""
    return [not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]


def pareto_plot(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Draw the jobs of a sweep, whole or not at all.

    Args:
        rows: of `Sweep.rows`.
        path: an .svg or .png file.

    Raises:
        ConfigError: altair is not installed.
        ExportError: the folder cannot be written.
    """
    if alt is None:
        raise ConfigError("the plot of a sweep needs altair and vl-convert: pip install altair vl-convert-python")
    with replacing(path) as temporary:
        alt.hconcat(*(_chart(rows, cost) for cost in COSTS)).save(str(temporary))
    return Path(path)


def _chart(rows: Sequence[Mapping[str, Any]], cost: str) -> Any:
    shown = [{key: row[key] for key in ("job", "recipe", "top1", cost, f"{cost} front")} for row in rows]
    base = alt.Chart(alt.Data(values=shown)).encode(
        x=alt.X(f"{cost}:Q", title=COSTS[cost], scale=alt.Scale(zero=False)),
        y=alt.Y("top1:Q", title="int8 top-1, %", scale=alt.Scale(zero=False)),
    )
    line = base.transform_filter(f"datum['{cost} front']").mark_line(color="grey", interpolate="step-after")
    dots = base.mark_point(filled=True, size=60).encode(color=alt.Color("recipe:N"), opacity=alt.value(0.9))
    names = base.mark_text(align="left", dx=6, dy=-6, fontSize=9).encode(text="job:N")
    return (line + dots + names).properties(width=320, height=260)
