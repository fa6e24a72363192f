"""Draws docs/images/staircase.svg: `python docs/pictures.py`, when its formula changes."""

from __future__ import annotations

from pathlib import Path

import altair as alt

SCALE, LOW, HIGH = 0.5, -3, 3  # 3 bits, symmetric and narrow
IMAGES = Path(__file__).parent / "images"


def staircase() -> alt.HConcatChart:
    """`y` and `dy/dx` over `x` of a 3-bit grid."""
    rows = []
    for i in range(-250, 251):
        x = i / 100
        steps = round(x / SCALE)
        inside = LOW <= steps <= HIGH
        rows.append({"x": x, "y": min(max(steps, LOW), HIGH) * SCALE, "gradient": int(inside), "line": x})
    base = alt.Chart(alt.Data(values=rows)).encode(x=alt.X("x:Q", title="x"))
    line = base.mark_line(color="#999999", strokeDash=[4, 3]).encode(y=alt.Y("line:Q", title="y"))
    stairs = base.mark_line(interpolate="step", color="#2563a8").encode(y="y:Q")
    gradient = base.mark_line(interpolate="step", color="#c2571a").encode(y=alt.Y("gradient:Q", title="dy/dx"))
    return alt.hconcat(
        (line + stairs).properties(width=300, height=200), gradient.properties(width=300, height=200)
    ).configure(background="white")


if __name__ == "__main__":
    staircase().save(str(IMAGES / "staircase.svg"))
