"""The report as text: `report.html`, one file without network, and `report.md`, from the templates beside this file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from qat.files import write_text
from qat.report.charts import javascript, oscillation, sweep_charts, training_charts
from qat.report.folder import RunFolder, differences
from qat.report.graph import modules
from qat.report.interval import between
from qat.report.jobs import Sweep
from qat.report.pareto import COSTS
from qat.report.record import ClassCount, Classes, Layer, Layers, Training
from qat.report.results import STAGES
from qat.report.spark import curve, histogram, said, text_curve, text_histogram


def worst_first(layers: Layers | None) -> list[Layer]:
    """Operators by the SNR of their result, lowest first; those without one last."""
    found = layers.layers if layers else ()
    return sorted(found, key=lambda layer: (layer.snr is None, layer.snr or 0.0))


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


def scale_of(layer: Layer, training: Training | None) -> Sequence[float]:
    """The scale of an operator over training: the one that moved most, of learned ones before observed ones."""
    if training is None:
        return ()
    known = [path for path in layer.quantizers if training.scales.get(path)]
    learned = [path for path in known if path in training.trained]
    curves = [training.scales[path] for path in learned or known]
    return max(curves, key=lambda values: (max(values) - min(values)) / (max(values) or 1.0), default=())


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
        between=between, histogram=histogram, curve=curve, said=said, text_histogram=text_histogram,
        text_curve=text_curve, worst_first=worst_first, charts=training_charts, modules=modules, by_loss=by_loss,
        totals=totals, differences=differences, sweep_charts=sweep_charts, costs=COSTS, oscillation=oscillation,
        scale_of=scale_of, link=_link, titles=STAGES,
        stage_columns=[f"{title}, %" for title in STAGES.values()], library="",
    )  # fmt: skip
    return environment.get_template(template).render(values)


def write_report(runs: Sequence[RunFolder], folder: str | Path) -> Path:
    """Write `report.html` and `report.md` of runs into a folder; returns the first."""
    library = javascript() if any(run.training for run in runs) else ""
    title = " · ".join(run.name for run in runs)
    return _write(folder, "report", runs=list(runs), library=library, title=title, here=Path(folder).resolve())


def write_sweep(sweep: Sweep, folder: str | Path) -> Path:
    """Write `report.html` and `report.md` of a sweep into a folder; returns the first."""
    return _write(folder, "sweep", sweep=sweep, library=javascript(), title=f"Sweep {sweep.name}")


def _write(folder: str | Path, template: str, **values: Any) -> Path:
    write_text(Path(folder) / "report.md", render(f"{template}.md.j2", **values))
    return write_text(Path(folder) / "report.html", render(f"{template}.html.j2", **values))


def _link(file: Path, folder: Path) -> str:
    """The address of a file in a page that is in a folder."""
    return quote(os.path.relpath(file, folder).replace(os.sep, "/"))


def _cell(value: Any) -> str:
    """Text inside a cell of a Markdown table."""
    return " ".join(str(value).replace("|", "\\|").split())


def _inline(spec: Any) -> Markup:
    """JSON inside a script element, which nothing in it can end."""
    return Markup(json.dumps(spec, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))
