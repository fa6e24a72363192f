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

COSTS = {"size": "file, kB", "latency": "latency, ms"}


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, gain) are on the front: cost falls, gain rises; equal points are on it together."""
    return [not any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]


def pareto_plot(results: Mapping[str, Mapping[str, Any]], path: str | Path) -> Path:
    """Draw runs that have results, whole or not at all.

    Args:
        results: what `results.json` holds, by job.
        path: an .svg or .png file.

    Raises:
        ConfigError: altair is not installed.
        ExportError: the folder cannot be written.
    """
    if alt is None:
        raise ConfigError("the plot of a sweep needs altair and vl-convert: pip install altair vl-convert-python")
    charts = [_chart(results, cost) for cost in COSTS]
    with replacing(path) as temporary:
        alt.hconcat(*charts).save(str(temporary))
    return Path(path)


def _chart(results: Mapping[str, Mapping[str, Any]], cost: str) -> Any:
    costs = {
        job: r["size_bytes"]["int8"] / 1e3 if cost == "size" else r["latency_ms"]["int8"] for job, r in results.items()
    }
    points = [(costs[job], r["top1"]["int8"]) for job, r in results.items()]
    rows = [
        {"job": job, "cost": x, "top1": y, "recipe": r["recipe"], "front": on}
        for (job, r), (x, y), on in zip(results.items(), points, front(points), strict=True)
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("cost:Q", title=COSTS[cost], scale=alt.Scale(zero=False)),
        y=alt.Y("top1:Q", title="int8 top-1, %", scale=alt.Scale(zero=False)),
    )
    line = base.transform_filter("datum.front").mark_line(color="grey", interpolate="step-after")
    dots = base.mark_point(filled=True, size=60).encode(color=alt.Color("recipe:N"), opacity=alt.value(0.9))
    names = base.mark_text(align="left", dx=6, dy=-6, fontSize=9).encode(text="job:N")
    return (line + dots + names).properties(width=320, height=260)
