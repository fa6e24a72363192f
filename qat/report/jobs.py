"""A sweep's folder as the report reads it: every job's settings and what came of it, the failed ones too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qat.errors import ReportError
from qat.report.folder import read_whole_results
from qat.report.objective import read_failure
from qat.report.pareto import front
from qat.report.record import Run, read
from qat.report.sweep import job_folders

NEEDED = ("recipe", "top1", "agreement", "size_bytes", "latency_ms", "passed")  # of results.json
COSTS = {"kB": "file, kB", "ms": "latency, ms"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of its folder, a number.
        settings: its overrides, by key.
        results: `results.json`; None where it failed or did not end.
        error: why it failed.
        command: that runs it again.
    """

    name: str
    settings: dict[str, str]
    results: dict[str, Any] | None
    error: str
    command: str


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All jobs of a sweep, by number."""

    name: str
    jobs: tuple[Job, ...]

    @property
    def done(self) -> list[Job]:
        """Jobs with results, best int8 first."""
        return sorted((j for j in self.jobs if j.results), key=lambda j: -j.results["top1"]["int8"])  # type: ignore[index]

    @property
    def failed(self) -> list[Job]:
        """The others."""
        return [job for job in self.jobs if not job.results]

    @property
    def varied(self) -> list[str]:
        """Keys that not all jobs have the same value of."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.settings)
        return [key for key in keys if len({job.settings.get(key) for job in self.jobs}) > 1]

    def rows(self) -> list[dict[str, Any]]:
        """What the charts show of every job that is done, with whether it is on each front."""
        rows = [
            {
                "job": job.name,
                "recipe": r["recipe"],
                "settings": ", ".join(f"{key}={value}" for key, value in job.settings.items()),
                "top1": r["top1"]["int8"],
                "kB": r["size_bytes"]["int8"] / 1e3,
                "ms": r["latency_ms"]["int8"],
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


def read_sweep(path: str | Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        ReportError: a file of a job is damaged.
    """
    path = Path(path)
    return Sweep(name=path.resolve().name, jobs=tuple(_job(folder) for folder in job_folders(path)))


def _job(folder: Path) -> Job:
    try:
        overrides = yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text()) or []
        results = read_whole_results(folder / "results.json")
    except yaml.YAMLError as error:
        raise ReportError(f"{folder} is damaged: {error}. Run the job again, or remove its folder") from error
    run = read(folder, Run)
    failure = read_failure(folder) if results is None else ""
    if results is not None and (lacking := [key for key in NEEDED if key not in results]):
        results, failure = None, f"results.json is of another version: it has no {', '.join(lacking)}"
    return Job(
        name=folder.name,
        settings=dict(str(override).partition("=")[::2] for override in overrides),
        results=results,
        error=failure or ("" if results else "no results: it was interrupted, or still runs"),
        command=run.command if run and run.command else f"python train.py {' '.join(overrides)}",
    )


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
