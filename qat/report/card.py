"""The card of one run: the table on the terminal, from `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """`results.json` of a run folder."""
    return json.loads((Path(run_dir) / "results.json").read_text())


def card(results: Mapping[str, Any]) -> RenderableType:
    """The card: accuracy, size and latency of float and int8, then the parity ladder, then the circumstances."""
    return Group(_headline(results), _ladder(results), _circumstances(results))


COLUMNS = {"float": "float", "ptq": "PTQ", "qat": "QAT", "int8": "int8"}


def _headline(r: Mapping[str, Any]) -> Table:
    table = Table(title=f"{r['model']} · {r['recipe']} · {r['target']}", title_style="bold", title_justify="left")
    shown = [k for k in COLUMNS if k in r["top1"] and not (k == "qat" and r.get("task") in ("ptq", "analyze"))]
    table.add_column("", justify="left")
    for k in shown:
        table.add_column(COLUMNS[k], justify="right")
    table.add_row("top-1, %", *(f"{r['top1'][k]:.2f}" for k in shown))
    for what, values, form, unit in (
        ("file, kB", r["size_bytes"], ",.0f", 1e3),
        ("latency, ms", r["latency_ms"], ".3f", 1.0),
    ):
        cells = {k: f"{value / unit:{form}}" for k, value in values.items()}
        if {"float", "int8"} <= set(values):
            cells["int8"] += f"  ({values['int8'] / values['float']:.2f}x)"
        table.add_row(what, *(cells.get(k, "") for k in shown))
    return table


def _ladder(r: Mapping[str, Any]) -> Table:
    table = Table(title=f"Parity on {r['examples']} validation images", title_style="bold", title_justify="left")
    table.add_column("stage")
    for column in ("top-1, %", "agreement, %", "max, steps", "mean, steps"):
        table.add_column(column, justify="right")
    for stage in r["parity"]:
        top1 = "" if stage["top1"] is None else f"{stage['top1']:.2f}"
        table.add_row(
            stage["name"], top1, f"{stage['agreement']:.2f}", f"{stage['max_steps']:.1f}", f"{stage['mean_steps']:.3f}"
        )
    verdict = Text("passed", style="green") if r["passed"] else Text("failed: " + "; ".join(r["failures"]), style="red")
    step = "one integer of the output" if r.get("output_step", 1.0) is not None else "1 in the output, a float"
    base = r.get("base", "fake-quant")
    table.caption = Text(f"agreement: same class as {base}; step: {step}.  Gate: ") + verdict
    table.caption_justify = "left"
    return table


def _circumstances(r: Mapping[str, Any]) -> Text:
    cpu, versions, seconds = r["cpu"], r["versions"], r["seconds"]
    share = r["int8_mac_share"]
    lines = [
        (f"{100 * share:.2f} % of multiply-accumulates in integers · " if share is not None else "")
        + f"seed {r['seed']} · agreement {r['agreement']:.2f} %",
        *r["notes"],
        f"{cpu['name']} ({', '.join(cpu['isa'])}), {cpu['threads']} threads",
        " ".join(f"{name} {v}" for name, v in versions.items()),
        "seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in seconds.items()),
    ]
    return Text("\n".join(lines), style="dim")
