"""A run folder as the report reads it: what is there, and what is missing."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qat.errors import ReportError
from qat.report.record import Classes, Layers, Run, Training, read

NEEDED = (  # of results.json; a run of an older version lacks some
    "model", "recipe", "target", "top1", "agreement", "examples", "size_bytes", "latency_ms", "int8_mac_share",
    "passed", "failures", "departure", "parity", "seed", "cpu", "versions",
)  # fmt: skip
STAGES = {"float", "ptq", "qat", "int8"}  # what the page compares: static quantization
TRACES = ("results.json", "plan.txt", "config.yaml", ".hydra", "train.log")
PLACES = ("run_dir", "cache_dir", "ckpt_path")
Z = 1.959964  # 95 % of a normal distribution


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run.

    Attributes:
        name: of its folder.
        results: `results.json`; None where the run did not end.
        layers: the record of its operators, if there is one.
        missing: what the report does without, one sentence each.
        run: where it comes from.
        training: curves, by `float` and `qat`.
        classes: what quantization changed.
        images: thumbnails as data URIs, by the file that `classes` names.
        config: `config.yaml`, flat: `qat.epochs` and its value as text.
    """

    name: str
    results: dict[str, Any] | None
    layers: Layers | None
    missing: tuple[str, ...]
    run: Run | None = None
    training: Mapping[str, Training] = field(default_factory=dict)
    classes: Classes | None = None
    images: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)


def read_run(path: str | Path) -> RunFolder:
    """The run in a folder, as far as it went.

    Raises:
        ReportError: no folder, or one that no run wrote; a file in it is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise ReportError(f"{path} is no folder; give the folder of a run, such as outputs/DATE_MODEL_RECIPE")
    if not any((path / trace).exists() for trace in TRACES):
        raise ReportError(f"{path} is no run: it has none of {', '.join(TRACES)}. Give the folder that a run wrote")
    missing = []
    results = read_whole_results(path / "results.json")
    if results is None:
        missing.append("no results.json: the run did not end; its train.log says why")
    elif lacking := [key for key in NEEDED if key not in results]:
        results = None
        missing.append(f"results.json is of another version: it has no {', '.join(lacking)}; run again for its numbers")
    elif not set(results["top1"]) >= STAGES:
        missing.append(f"a run of task={results.get('task')} has no page here: its numbers are in results.json")
        results = None
    layers = read(path, Layers)
    if layers is None:
        missing.append("no record/layers.json: the run is older than this report, or did not come that far")
    curves = {name: read(path, Training, name) for name in ("float", "qat")}
    classes = read(path, Classes)
    return RunFolder(
        name=path.resolve().name, results=results, layers=layers, missing=tuple(missing), run=read(path, Run),
        training={name: found for name, found in curves.items() if found is not None and found.steps},
        classes=classes, images=_images(path, classes), config=_config(path / "config.yaml"),
    )  # fmt: skip


def read_whole_results(file: Path) -> dict[str, Any] | None:
    """What `results.json` holds; None where there is none.

    Raises:
        ReportError: it is damaged.
    """
    if not file.is_file():
        return None
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise ReportError(f"{file} is damaged: {error}. Run again, or remove it to see the rest") from error
    if not isinstance(results, dict):
        raise ReportError(f"{file} is damaged: it holds no results. Run again, or remove it to see the rest")
    return results


def read_runs(paths: Sequence[str | Path]) -> list[RunFolder]:
    """Several runs to compare.

    Raises:
        ReportError: two of the same name; as `read_run`.
    """
    runs = [read_run(path) for path in paths]
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ReportError(f"two runs are called {', '.join(twice)}; rename a folder, the comparison goes by names")
    return runs


def differences(runs: Sequence[RunFolder]) -> dict[str, list[str]]:
    """Config keys on which runs differ, with the value of each run; where the run writes to is none of them."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in PLACES)
    found = {key: [run.config.get(key, "") for run in runs] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def _images(path: Path, classes: Classes | None) -> dict[str, str]:
    files = [image.file for image in classes.images] if classes else []
    return {
        file: "data:image/png;base64," + base64.b64encode((path / file).read_bytes()).decode()
        for file in files
        if (path / file).is_file()
    }


def _config(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        return _flat(yaml.safe_load(file.read_text()))
    except yaml.YAMLError as error:
        raise ReportError(f"{file} is damaged: {error}. Remove it, and the report does without") from error


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(value, Mapping) or not value:
        return {prefix: json.dumps(value, default=str).strip('"')} if prefix else {}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def wilson(percent: float, n: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share of `n` examples, in percent (Wilson 1927).

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    p, z2 = percent / 100.0, Z * Z / n
    half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n))
    return (
        100.0 * max((p + z2 / 2 - half) / (1 + z2), 0.0),
        100.0 * min((p + z2 / 2 + half) / (1 + z2), 1.0),
    )
