"""What a sweep optimizes: numbers of one run's results, and what a job of a sweep leaves when it fails.

top1, agreement     of the int8 artefact, in percent; maximize
size, latency       of the int8 artefact, in bytes and milliseconds; minimize

A float model that was evaluated has none of them: its job has no value, and its sweep lists it as without int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qat.errors import ConfigError, unknown_name
from qat.files import write_text

FAILURE = "error.txt"  # in the run folder, beside what the run had written until then
OBJECTIVES: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "top1": lambda r: r["top1"].get("int8"),
    "agreement": lambda r: r["agreement"] if "int8" in r["top1"] else None,
    "size": lambda r: r["size_bytes"].get("int8"),
    "latency": lambda r: r["latency_ms"].get("int8"),
}


def require_objectives(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple; one may be given alone.

    Raises:
        ConfigError: none, one that is not known, or one given twice.
    """
    listed = (names,) if isinstance(names, str) else tuple(names)
    for name in listed:
        if name not in OBJECTIVES:
            raise ConfigError(unknown_name("objective", str(name), OBJECTIVES))
    if not listed or len(set(listed)) < len(listed):
        raise ConfigError(
            f"need one objective or several different ones, got {list(listed)}; e.g. objective=[top1,size]"
        )
    return listed


def objectives(results: Mapping[str, Any], names: Sequence[str]) -> float | tuple[float, ...] | None:
    """The values of `names` in what `results.json` holds; one alone is a number, as sweepers want it."""
    found = [OBJECTIVES[name](results) for name in names]
    values = tuple(float(value) for value in found if value is not None)
    if len(values) < len(found):
        return None
    return values[0] if len(values) == 1 else values


def write_failure(run_dir: str | Path, error: Exception) -> Path:
    """Leave the message of a job that failed, for the table of its sweep."""
    return write_text(Path(run_dir) / FAILURE, f"{type(error).__name__}: {error}\n")


def read_failure(run_dir: str | Path) -> str:
    """The message of a job that failed; empty where there is none."""
    path = Path(run_dir) / FAILURE
    return path.read_text().strip() if path.is_file() else ""
