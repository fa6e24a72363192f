"""A sweep's beginning and end: where it goes on after an interruption, one table, the failures, a plot and a page.

sweep folder/
  0, 1, 2, ...      a run folder each: results.json, or error.txt with the message
  study.db          Optuna's trials, where hparams_search=optuna
  pareto.svg        int8 top-1 against size and latency
  report.html, .md  the same with the settings and commands of all jobs
"""

from __future__ import annotations

import atexit
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qat.errors import QatError
from qat.report.interval import between
from qat.report.jobs import Job, job_folders, job_number, read_sweep
from qat.report.objective import read_failure
from qat.report.page import write_sweep
from qat.report.pareto import pareto_plot
from qat.report.results import FILE, STAGES, Results

PLOT = "pareto.svg"


def sweep_table(folder: str | Path) -> RenderableType:
    """One row per job, best int8 first: its overrides and what came of it; then why jobs failed."""
    sweep = read_sweep(folder)
    table = Table(title=f"Sweep in {folder}", title_style="bold", title_justify="left")
    for column in ("job", "overrides"):
        table.add_column(column, overflow="fold")
    for column in (*STAGES.values(), "95 % interval", "agreement", "size", "latency", "gate"):
        table.add_column(column, justify="right")
    for job in (*sweep.done, *sweep.failed):
        overrides = escape(", ".join(f"{key}={value}" for key, value in job.settings.items()))
        table.add_row(job.name, overrides, *(_cells(job.results) if job.results else _blank(job)))
    said = [f"job {job.name}: {job.error}" for job in sweep.jobs if job.error and not job.stopped]
    return Group(table, Text("\n".join(said), style="red")) if said else table


def _cells(r: Results) -> list[str]:
    top1 = [f"{r.stages[k]:.2f}" if k in r.stages else "" for k in STAGES]
    ratios = [f"{ratio:.2f}x" if (ratio := r.ratio(name)) else "" for name in ("size_bytes", "latency_ms")]
    gate = "[green]passed[/]" if r.passed else "[red]failed[/]"
    found = between(r.stages["int8"], r.examples) if "int8" in r.stages else "no int8"
    return [*top1, found, f"{r.agreement:.2f}", *ratios, gate]


def _blank(job: Job) -> list[str]:
    return [*[""] * (len(STAGES) + 4), "[red]no results[/]" if job.stopped else "[red]failed[/]"]


class SweepSummary(Callback):
    """Hydra callback: lets a search go on in its folder, says how far it is, and sums a multirun up when it ends."""

    def __init__(self) -> None:
        self.total = self.before = 0  # jobs of this command; jobs that its folder had
        self.start = 0.0  # seconds of a clock that all processes share
        self.summed_up = False
        _register()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As `__init__`, in the processes of parallel jobs."""
        self.__dict__.update(state)
        _register()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder; where it has jobs of a search, count them as trials and number the next ones behind them."""
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)  # Optuna opens its file before there is a job
        atexit.register(self._last_words, folder)
        self.before, self.start = _finished(folder), time.monotonic()
        with read_write(config), read_write(config.hydra), open_dict(config.hydra):
            jobs = job_folders(folder)
            self.total = _planned(config)
            if "n_trials" not in config.hydra.sweeper or not jobs:  # a grid: jobs that ended well are not run again
                self.before = _finished(folder, failed=False)
                self.total = max(0, self.total - self.before)
                return
            self.total = config.hydra.sweeper.n_trials = max(0, config.hydra.sweeper.n_trials - self.before)
            first = 1 + max(job_number(job)[0] for job in jobs)
            sampler = config.hydra.sweeper.sampler
            if sampler.get("seed") is not None:
                sampler.seed += first  # the same seed would draw the first trials again
            # an override, because the config of every job is composed anew
            config.hydra.overrides.hydra.append(f"hydra.sweep.subdir=${{qat_job:{first}}}")

    def on_job_end(self, config: DictConfig, job_return: Any, **kwargs: Any) -> None:
        """Say how many jobs are done, and about how long the others take."""
        if not self.total:  # a run alone
            return
        done = _finished(Path(config.hydra.sweep.dir)) - self.before
        if 0 < done < self.total:
            left = timedelta(seconds=round((time.monotonic() - self.start) / done * (self.total - done)))
            Console().print(f"{done} of {self.total} jobs done, about {left} left", highlight=False)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the summary of the folder, draw and write what has results; where no job has any, exit with 1."""
        self.summed_up = True
        folder = Path(config.hydra.sweep.dir)
        console, sweep = Console(), read_sweep(folder)
        console.print(sweep_table(folder))
        try:
            if rows := sweep.rows():
                console.print(f"accuracy against size and latency: {pareto_plot(rows, folder / PLOT)}", soft_wrap=True)
            if rows and OmegaConf.select(config, "report", default=True):
                console.print(f"report: {write_sweep(sweep, folder)}", soft_wrap=True)
        except QatError as error:  # the table stands
            console.print(f"no plot, or no page: {error}", soft_wrap=True)
        if not any(job.results for job in sweep.jobs):
            raise SystemExit(1)

    def _last_words(self, folder: Path) -> None:
        """The table of a sweep that did not come to its end: Optuna's raises where every trial failed."""
        if not self.summed_up and job_folders(folder):
            Console().print(sweep_table(folder))


def _finished(folder: Path, *, failed: bool = True) -> int:
    """How many jobs ended, well or, where that counts, with a message."""
    messages = [bool(read_failure(job)) for job in job_folders(folder)]
    well = [(job / FILE).is_file() for job in job_folders(folder)]
    return sum((w or m) if failed else (w and not m) for w, m in zip(well, messages, strict=True))


def _planned(config: DictConfig) -> int:
    """How many jobs the sweeper will start."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    given = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in (sweeper.get("params") or {}).items())]
    parsed = OverridesParser.create().parse_overrides(given)
    return math.prod(len(list(override.sweep_iterator())) for override in parsed if override.is_sweep_override())


def _register() -> None:
    """`${qat_job:FIRST}`: the job's number where the first one is FIRST."""

    def numbered(first: int, *, _root_: DictConfig) -> int:
        return int(_root_.hydra.job.num) + int(first)

    OmegaConf.register_new_resolver("qat_job", numbered, replace=True)
