"""Draws docs/images: when the formula of the staircase changes, or the look of a report.

python docs/pictures.py                             staircase.svg
python docs/pictures.py outputs/RUN/report.html     report.png, the top of it; needs Chromium and playwright
"""

from __future__ import annotations

import shutil
import sys
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


def report(html: Path) -> None:
    """The top of a report, as a browser shows it once its charts are drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1120, "height": 1260}, color_scheme="light")
        page.goto(html.resolve().as_uri())
        page.wait_for_function("performance.getEntriesByName('drawn').length")
        page.screenshot(path=IMAGES / "report.png")
        browser.close()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        report(Path(sys.argv[1]))
    else:
        staircase().save(str(IMAGES / "staircase.svg"))
