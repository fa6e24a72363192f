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


def _headline(r: Mapping[str, Any]) -> Table:
    table = Table(title=f"{r['model']} · {r['recipe']} · {r['target']}", title_style="bold", title_justify="left")
    for column in ("", "float", "PTQ", "QAT", "int8"):
        table.add_column(column, justify="left" if not column else "right")
    top1, size, latency = r["top1"], r["size_bytes"], r["latency_ms"]
    table.add_row("top-1, %", *(f"{top1[k]:.2f}" for k in ("float", "ptq", "qat", "int8")))
    ratio = size["int8"] / size["float"]
    table.add_row("file, kB", f"{size['float'] / 1e3:,.0f}", "", "", f"{size['int8'] / 1e3:,.0f}  ({ratio:.2f}x)")
    ratio = latency["int8"] / latency["float"]
    table.add_row("latency, ms", f"{latency['float']:.3f}", "", "", f"{latency['int8']:.3f}  ({ratio:.2f}x)")
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
    table.caption = Text("agreement: same class as fake-quant; step: one integer of the output.  Gate: ") + verdict
    table.caption_justify = "left"
    return table


def _circumstances(r: Mapping[str, Any]) -> Text:
    cpu, versions, seconds = r["cpu"], r["versions"], r["seconds"]
    lines = [
        f"{100 * r['int8_mac_share']:.2f} % of multiply-accumulates in integers · seed {r['seed']} · "
        f"agreement {r['agreement']:.2f} %",
        *r["notes"],
        f"{cpu['name']} ({', '.join(cpu['isa'])}), {cpu['threads']} threads",
        " ".join(f"{name} {v}" for name, v in versions.items()),
        "seconds: " + ", ".join(f"{stage} {s:.1f}" for stage, s in seconds.items()),
    ]
    return Text("\n".join(lines), style="dim")
