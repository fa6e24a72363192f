"""The report as text: `report.html`, one file without network, and `report.md`, from the templates beside this file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qat.files import write_text
from qat.report.charts import javascript, oscillation, sweep_charts, training_charts
from qat.report.folder import RunFolder, differences, wilson
from qat.report.graph import modules
from qat.report.jobs import COSTS, Sweep
from qat.report.record import ClassCount, Classes, Layer, Layers, Values

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
        f'<svg class="histogram" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"><title>{label}</title>'
        f'<path class="bars" d="{bars}"/><path class="ends" d="{lines}"/></svg>'
    )


def by_loss(classes: Classes) -> list[ClassCount]:
    """Classes whose count of right answers changed, those that lost most first, as shares of the class."""
    moved = [c for c in classes.classes if c.count and c.float_correct != c.int8_correct]
    return sorted(moved, key=lambda c: (c.int8_correct - c.float_correct) / c.count)


def totals(layers: Layers) -> dict[str, float]:
    """What the shares of the operators are of; `ms` is 0 where nothing was measured."""
    ms = [layer.ms for layer in layers.layers if layer.ms is not None]
    return {
        "macs": sum(layer.macs for layer in layers.layers),
        "bytes": sum(layer.bytes for layer in layers.layers),
        "ms": sum(ms) + (layers.ms_other or 0.0) if ms else 0.0,
    }


def render(template: str, **values: Any) -> str:
    """One of the templates, filled."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(thousands=lambda value: f"{value:,.0f}", spec=_inline, cell=_cell)
    environment.globals.update(
        wilson=wilson, histogram=histogram, worst_first=worst_first, charts=training_charts, modules=modules,
        by_loss=by_loss, totals=totals, differences=differences, sweep_charts=sweep_charts,
        costs=COSTS, oscillation=oscillation, library="",
    )  # fmt: skip
    return environment.get_template(template).render(values)


def write_report(runs: Sequence[RunFolder], folder: str | Path) -> Path:
    """Write `report.html` and `report.md` of runs into a folder; returns the first."""
    library = javascript() if any(run.training for run in runs) else ""
    title = " · ".join(run.name for run in runs)
    return _write(folder, "report", runs=list(runs), library=library, title=title)


def write_sweep(sweep: Sweep, folder: str | Path) -> Path:
    """Write `report.html` and `report.md` of a sweep into a folder; returns the first."""
    return _write(folder, "sweep", sweep=sweep, library=javascript(), title=f"Sweep {sweep.name}")


def _write(folder: str | Path, template: str, **values: Any) -> Path:
    write_text(Path(folder) / "report.md", render(f"{template}.md.j2", **values))
    return write_text(Path(folder) / "report.html", render(f"{template}.html.j2", **values))


def _cell(value: Any) -> str:
    """Text inside a cell of a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())


def _inline(spec: Any) -> Markup:
    """JSON inside a script element, which nothing in it can end."""
    return Markup(json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c"))
