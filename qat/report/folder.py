"""A run folder as the report reads it: what is there, and what is missing."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qat.errors import ReportError
from qat.report.record import Classes, Layers, Run, Training, read
from qat.report.results import Results, parse_results, read_results

TRACES = ("results.json", "plan.txt", "config.yaml", ".hydra", "train.log")
PLACES = ("run_dir", "cache_dir", "ckpt_path", "logger.save_dir", "logger.tracking_uri")
STATIC = ("qat", "ptq", "analyze")  # tasks whose models have quantizers to look at


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run.

    Attributes:
        name: of its folder.
        path: of its folder, whole.
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
    path: Path
    results: Results | None
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
    results, said = None, "no results.json: the run did not end; its train.log says why"
    if (found := read_results(path)) is not None:
        try:
            results, said = parse_results(found), ""
        except ReportError as error:
            said = str(error)
    layers, run, classes = read(path, Layers), read(path, Run), read(path, Classes)
    curves = {name: read(path, Training, name) for name in ("float", "qat")}
    training = {name: curve for name, curve in curves.items() if curve is not None and curve.steps}
    images, config = _images(path, classes), _config(path / "config.yaml")
    lacking = _lacking(results, config, layers, run, training, classes, images)
    return RunFolder(
        name=path.resolve().name, path=path.resolve(), results=results, layers=layers,
        missing=(*([said] if said else []), *lacking), run=run, training=training, classes=classes, images=images,
        config=config,
    )  # fmt: skip


def _lacking(
    results: Results | None,
    config: Mapping[str, str],
    layers: Layers | None,
    run: Run | None,
    training: Mapping[str, Training],
    classes: Classes | None,
    images: Mapping[str, str],
) -> Iterator[str]:
    """A sentence for each part that a run of this task leaves, and this one did not."""
    task = results.task if results else config.get("task", "qat")
    if layers is None and task in STATIC:
        yield "no record/layers.json: the run is older than this report, or did not come that far"
    if "qat" not in training and task == "qat" and config.get("qat.epochs", "0") != "0":
        yield "no record/qat.json: no curves of training, which the run had or would have had"
    if results is None:  # what follows is written when a run ends
        return
    if classes is None and {"float", "int8"} <= set(results.stages):
        yield "no record/classes.json: not known which classes lost, and on which images float and int8 disagree"
    if run is None:
        yield "no record/run.json: neither command nor commit of the run are known"
    if gone := [image.file for image in (classes.images if classes else ()) if image.file not in images]:
        yield f"{len(gone)} images of record/images are gone, such as {gone[0]}"


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
