"""The report as text: `report.html`, one file without network, and `report.md`, from the templates beside this file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qat.files import write_text
from qat.report.folder import RunFolder, wilson
from qat.report.record import Layer, Layers, Values

WIDTH, HEIGHT = 96, 24  # of a histogram, in its own units


def worst_first(layers: Layers | None) -> list[Layer]:
    """Operators by the SNR of their result, lowest first; those without one last."""
    found = layers.layers if layers else ()
    return sorted(found, key=lambda layer: (layer.snr is None, layer.snr or 0.0))


def histogram(values: Values) -> Markup:
    """A histogram as SVG: counts as bars, the range of the grid as two lines."""
    top = max(max(values.counts), 1)
    step = WIDTH / len(values.counts)
    heights = [HEIGHT * count / top for count in values.counts]
    bars = "".join(f"M{i * step:.1f} {HEIGHT}v-{h:.1f}h{step:.1f}v{h:.1f}z" for i, h in enumerate(heights) if h)
    span = (values.high - values.low) or 1.0
    ends = (WIDTH * (v - values.low) / span for v in (values.grid_low, values.grid_high))
    lines = "".join(f"M{x:.1f} 0v{HEIGHT}" for x in ends if 0 <= x <= WIDTH)
    label = f"values {values.low:.3g} to {values.high:.3g}, grid {values.grid_low:.3g} to {values.grid_high:.3g}"
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<path class="bars" d="{bars}"/><path class="ends" d="{lines}"/></svg>'
    )


def render(runs: Sequence[RunFolder], template: str) -> str:
    """One of the templates, filled."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(wilson=wilson, histogram=histogram, worst_first=worst_first)
    return environment.get_template(template).render(runs=list(runs))


def write_report(runs: Sequence[RunFolder], folder: str | Path) -> Path:
    """Write `report.html` and `report.md` into a folder; returns the first."""
    write_text(Path(folder) / "report.md", render(runs, "report.md.j2"))
    return write_text(Path(folder) / "report.html", render(runs, "report.html.j2"))
