"""The summary of a sweep: one table over the run folders below it, best int8 first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from qat.report.card import read_results


def sweep_table(folder: str | Path) -> Table:
    """One row per job: its overrides and what came of it; a job without results is listed as failed."""
    table = Table(title=f"Sweep in {folder}", title_style="bold", title_justify="left")
    for column in ("job", "overrides"):
        table.add_column(column, overflow="fold")
    for column in ("float", "PTQ", "QAT", "int8", "agreement", "size", "latency", "gate"):
        table.add_column(column, justify="right")
    rows = []
    for run in sorted((p for p in Path(folder).iterdir() if p.is_dir()), key=_number):
        overrides = ", ".join(yaml.safe_load((run / ".hydra" / "overrides.yaml").read_text()) or [])
        if not (run / "results.json").is_file():
            rows.append((-1.0, (run.name, overrides, *[""] * 7, "[red]no results[/]")))
            continue
        r = read_results(run)
        rows.append((r["top1"]["int8"], (run.name, overrides, *_cells(r))))
    for _, cells in sorted(rows, key=lambda row: -row[0]):
        table.add_row(*cells)
    return table


def _number(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else -1, path.name)


def _cells(r: dict[str, Any]) -> list[str]:
    size = r["size_bytes"]["int8"] / r["size_bytes"]["float"]
    latency = r["latency_ms"]["int8"] / r["latency_ms"]["float"]
    top1 = [f"{r['top1'][k]:.2f}" for k in ("float", "ptq", "qat", "int8")]
    gate = "[green]passed[/]" if r["passed"] else "[red]failed[/]"
    return [*top1, f"{r['agreement']:.2f}", f"{size:.2f}x", f"{latency:.2f}x", gate]


class SweepSummary(Callback):
    """Hydra callback: prints the table when a multirun ends."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the summary of the sweep's folder."""
        Console().print(sweep_table(config.hydra.sweep.dir))
