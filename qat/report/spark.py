"""Small drawings beside numbers: histograms and curves, as SVG for the page and as blocks of text for report.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from markupsafe import Markup

from qat.report.record import Values

WIDTH, HEIGHT = 96, 24  # of a drawing, in its own units
BLOCKS = "▁▂▃▄▅▆▇█"
LETTERS = 16  # of a drawing in text


def histogram(values: Values) -> Markup:
    """A histogram as SVG: counts as bars, the range of the grid as two lines."""
    top = max(max(values.counts), 1)
    step = WIDTH / len(values.counts)
    heights = [HEIGHT * count / top for count in values.counts]
    bars = "".join(f"M{i * step:.1f} {HEIGHT}v-{h:.1f}h{step:.1f}v{h:.1f}z" for i, h in enumerate(heights) if h)
    span = (values.high - values.low) or 1.0
    ends = (WIDTH * (v - values.low) / span for v in (values.grid_low, values.grid_high))
    lines = "".join(f"M{x:.1f} 0v{HEIGHT}" for x in ends if 0 <= x <= WIDTH)
    return _svg("histogram", said(values), f'<path class="bars" d="{bars}"/><path class="ends" d="{lines}"/>')


def said(values: Values) -> str:
    """What a histogram shows, in words."""
    return f"values {values.low:.3g} to {values.high:.3g}, grid {values.grid_low:.3g} to {values.grid_high:.3g}"


def curve(values: Sequence[float], about: str, *, least: float = 0.0) -> Markup:
    """A curve as SVG from its lowest to its highest value; values that are no numbers leave gaps.

    Args:
        values: at equal distances.
        about: what it shows.
        least: share of the highest value that the whole height is at least, so that what hardly moves looks so.
    """
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return Markup("")
    low, span = _span(known, least)
    points, pen = "", "M"
    for i, value in enumerate(values):
        if not math.isfinite(value):
            pen = "M"
            continue
        x, y = (WIDTH - 2) * i / (len(values) - 1) + 1, HEIGHT - 2 - (HEIGHT - 4) * (value - low) / span
        points, pen = f"{points}{pen}{x:.1f} {y:.1f}", "L"
    label = f"{about}: {values[0]:.3g} to {values[-1]:.3g}, between {low:.3g} and {max(known):.3g}"
    return _svg("curve", label, f'<path d="{points}"/>')


def text_histogram(values: Values) -> str:
    """Counts as blocks of text; every fourth root of a count, so that thin tails show."""
    counts = _grouped(values.counts, sum)
    top = max(counts) or 1
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (count / top) ** 0.25)] if count else "·" for count in counts)


def text_curve(values: Sequence[float], *, least: float = 0.0) -> str:
    """A curve as blocks of text, as `curve`; empty for fewer than two values."""
    known = [value for value in values if math.isfinite(value)]
    if len(known) < 2:
        return ""
    means = _grouped(known, lambda group: sum(group) / len(group))
    low, span = _span(means, least)
    return "".join(BLOCKS[round((len(BLOCKS) - 1) * (value - low) / span)] for value in means)


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    """The lowest value, and what the whole height stands for."""
    low, high = min(values), max(values)
    return low, max(high - low, least * abs(high)) or 1.0


def _grouped(values: Sequence[float], together: Callable[[Sequence[float]], float]) -> list[float]:
    """At most `LETTERS` values, each of as many neighbours."""
    count = min(LETTERS, len(values))
    ends = [round(i * len(values) / count) for i in range(count + 1)]
    return [together(values[a:b]) for a, b in pairwise(ends)]


def _svg(kind: str, label: str, inside: str) -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{{label}}"><title>{{label}}</title>'
        f"{inside}</svg>"
    ).format(label=label)
