"""The card of one run: the table on the terminal, from `results.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from qat.report.interval import between
from qat.report.results import STAGES, Results, parse_results


def card(results: Mapping[str, Any]) -> RenderableType:
    """The card: accuracy, size and latency of float and int8, then the parity ladder, then the circumstances."""
    r = parse_results(results)
    return Group(_headline(r), _ladder(r), _circumstances(r))


def _headline(r: Results) -> Table:
    table = Table(title=f"{r.model} · {r.recipe} · {r.target}", title_style="bold", title_justify="left")
    table.add_column("", justify="left")
    for k in r.stages:
        table.add_column(STAGES[k], justify="right")
    table.add_row("top-1, %", *(f"{top1:.2f}" for top1 in r.stages.values()))
    table.add_row(f"95 % interval, n = {r.examples:,}", *(between(top1, r.examples) for top1 in r.stages.values()))
    calls = f"latency, ms, batch of {r.latency_batch_size}" if r.latency_batch_size else "latency, ms"
    for what, name, form, unit in (("file, kB", "size_bytes", ",.0f", 1e3), (calls, "latency_ms", ".3f", 1.0)):
        cells = {k: f"{value / unit:{form}}" for k, value in getattr(r, name).items()}
        if (ratio := r.ratio(name)) is not None:
            cells["int8"] += f"  ({ratio:.2f}x)"
        table.add_row(what, *(cells.get(k, "") for k in r.stages))
    return table


def _ladder(r: Results) -> Table:
    table = Table(title=f"Parity on {r.examples} validation images", title_style="bold", title_justify="left")
    table.add_column("stage")
    for column in ("top-1, %", "agreement, %", "max", "mean", "from before"):
        table.add_column(column, justify="right")
    for stage in r.parity:
        top1 = "" if stage.top1 is None else f"{stage.top1:.2f}"
        before = "" if stage.mean_steps_before is None else f"{stage.mean_steps_before:.3f}"
        cells = (top1, f"{stage.agreement:.2f}", f"{stage.max_steps:.1f}", f"{stage.mean_steps:.3f}", before)
        table.add_row(stage.name, *cells, style="red" if r.departs(stage) else None)
    verdict = Text("passed", style="green") if r.passed else Text("failed: " + "; ".join(r.failures), style="red")
    step = "one integer of the output" if r.output_step is not None else "1 in the output, a float"
    table.caption = Text(
        f"agreement: same class as {r.base}; max, mean: steps from it; from before: mean steps from the row above; "
        f"step: {step}.  Gate: "
    )
    table.caption += verdict
    table.caption_justify = "left"
    return table


def _circumstances(r: Results) -> Text:
    shares = [] if r.int8_mac_share is None else [f"{100 * r.int8_mac_share:.2f} % of multiply-accumulates in integers"]
    shares += [f"seed {r.seed}", f"agreement {r.agreement:.2f} % ({between(r.agreement, r.examples)})"]
    lines = [
        " · ".join(shares),
        *([f"{r.coverage.runtime}: {r.coverage}"] if r.coverage else []),
        *r.notes,
        f"{r.cpu.name} ({', '.join(r.cpu.isa)}), {r.cpu.threads} threads",
        " ".join(f"{name} {v}" for name, v in r.versions.items()),
        "seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in r.seconds.items()),
    ]
    return Text("\n".join(lines), style="dim")
