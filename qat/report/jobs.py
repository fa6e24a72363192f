"""A sweep's folder as the report reads it: every job's settings and what came of it, the failed ones too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qat.errors import ReportError
from qat.report.objective import read_failure
from qat.report.pareto import COSTS, front
from qat.report.record import Run, read
from qat.report.results import Results, parse_results, read_results

STOPPED = "no results: it was interrupted, or still runs"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of its folder, a number.
        settings: its overrides, by key.
        results: `results.json`; None where it failed or did not end.
        error: why it failed, or why it is not compared.
        command: that runs it again.
    """

    name: str
    settings: dict[str, str]
    results: Results | None
    error: str
    command: str

    @property
    def stopped(self) -> bool:
        """Whether it left neither results nor a message."""
        return self.error == STOPPED

    @property
    def compared(self) -> bool:
        """Whether it delivered an int8 file, with numbers."""
        return self.results is not None and self.results.compared


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All jobs of a sweep, by number."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def done(self) -> list[Job]:
        """Jobs with an int8 file, best first."""
        return sorted((job for job in self.jobs if job.compared), key=lambda job: -job.results.stages["int8"])  # type: ignore[union-attr]

    @property
    def failed(self) -> list[Job]:
        """The others."""
        return [job for job in self.jobs if not job.compared]

    @property
    def varied(self) -> list[str]:
        """Keys that not all jobs have the same value of."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.settings)
        return [key for key in keys if len({job.settings.get(key) for job in self.jobs}) > 1]

    def rows(self) -> list[dict[str, Any]]:
        """What the charts show of every job that is done, with whether it is on each front."""
        rows: list[dict[str, Any]] = [
            {
                "job": job.name,
                "recipe": r.recipe,
                "settings": ", ".join(f"{key}={value}" for key, value in job.settings.items()),
                "top1": r.stages["int8"],
                "kB": r.size_bytes["int8"] / 1e3,
                "ms": r.latency_ms["int8"],
                **{f"set {key}": _value(job.settings.get(key, "default")) for key in self.varied},
            }
            for job in self.done
            if (r := job.results)
        ]
        for cost in COSTS:
            for row, on in zip(rows, front([(row[cost], row["top1"]) for row in rows]), strict=True):
                row[f"{cost} front"] = on
        return rows


def is_sweep(path: str | Path) -> bool:
    """Whether a folder holds the jobs of a sweep, and is no run itself."""
    path = Path(path)
    return path.is_dir() and not (path / ".hydra").exists() and bool(job_folders(path))


def job_folders(folder: str | Path) -> list[Path]:
    """The run folders of a sweep that were begun, by number."""
    begun = (p for p in Path(folder).iterdir() if (p / ".hydra" / "overrides.yaml").is_file())
    return sorted(begun, key=job_number)


def job_number(path: Path) -> tuple[int, str]:
    """What run folders of a sweep are sorted by; -1 where the name is no number."""
    return (int(path.name) if path.name.isdigit() else -1, path.name)


def read_sweep(path: str | Path) -> Sweep:
    """The sweep in a folder; a job with a damaged file is one that failed.

    Raises:
        ReportError: the overrides of a job cannot be read.
    """
    path = Path(path)
    return Sweep(name=path.resolve().name, jobs=tuple(_job(folder) for folder in job_folders(path)))


def _job(folder: Path) -> Job:
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) or []
    except yaml.YAMLError as error:
        raise ReportError(f"{folder} is damaged: {error}. Run the job again, or remove its folder") from error
    results, run, failure = None, None, read_failure(folder)
    try:
        found = read_results(folder)
        results = None if found is None else parse_results(found)
        run = read(folder, Run)
    except ReportError as error:
        failure = failure or f"{type(error).__name__}: {error}"
    if results is None:
        failure = failure or STOPPED
    elif not results.compared:
        said = "".join(f", float top-1 {top1:.2f} %" for key, top1 in results.stages.items() if key == "float")
        failure = failure or f"no int8: task={results.task}{said}"
    return Job(
        name=folder.name,
        settings=dict(str(override).partition("=")[::2] for override in overrides),
        results=results,
        error=failure,
        command=run.command if run and run.command else f"python train.py {' '.join(map(str, overrides))}",
    )


def _value(text: str) -> float | str:
    """A number that has a place on an axis, or the text as it is: `nan` and `inf` have none."""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text
