"""`task=evaluate`: a delivered file, or the float model, on a data set; top-1, parity and latency, and no training.

evaluate.artifact=RUN              the file of a run for `target`, beside the others that the run left
evaluate.artifact=FILE             a file alone; its reference is the same file without graph optimizations
evaluate.artifact=null             the float model of init_from or model.weights, and its file in the target's format
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

import qat
from qat.artifact import Artifact
from qat.data import ImageData
from qat.data.preparation import preparation
from qat.errors import ArtifactError, ConfigError
from qat.inputs import Inputs, first_output
from qat.ladder import Run, ladder
from qat.pipeline.baseline import float_baseline
from qat.pipeline.delivery import measure_latency
from qat.pipeline.lifecycle import begun, circumstances, conclude, settle
from qat.pipeline.reporting import classes, write_page
from qat.pipeline.results import covered
from qat.pipeline.source import read_source, with_preprocessing
from qat.pipeline.terminal import follow
from qat.pipeline.wanted import read_targets, read_tolerance
from qat.runtime import Runtime, load
from qat.settings import build
from qat.target import RUNTIMES

log = logging.getLogger(__name__)
REFERENCE = "integer reference (torch)"


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Run what was delivered, or what would be quantized, over the validation split."""
    with begun(cfg) as (folder, clock):
        target = read_targets(cfg)[0]
        source, tolerance = read_source(cfg), read_tolerance(cfg)
        cfg = with_preprocessing(cfg, source)
        given = delivered(cfg.evaluate.artifact, target)
        starts = cfg.init_from is not None or source.weights is not None
        if given is None and not starts:
            raise ConfigError(
                "task=evaluate needs something to evaluate: evaluate.artifact=FILE or the folder of a run, or a float "
                "model, init_from=FILE or model.weights=NAME"
            )
        if cfg.init_reset_head:
            raise ConfigError("init_reset_head=true trains a new head, and task=evaluate trains nothing; leave it out")
        settle(cfg, folder)
        with clock("data"):
            data: ImageData = build(cfg, "data")
            data.setup()
        example = next(iter(data.val_dataloader()))[0][:2]
        stages: dict[str, Run] = {}
        files: dict[str, Artifact] = {}
        if starts:
            with clock("float"):
                model = float_baseline(cfg, source, data).model.cpu().eval()
                stages["float"] = lambda x: first_output(x.call(model, "cpu"))
                files["float"] = qat.export(model, folder / f"float{target.artifact}", (example,))
        elif given is not None and (beside := given.path.with_name(f"float{given.kind}")).is_file():
            files["float"] = _file(beside)
            stages["float"] = _in(load(files["float"]))
        if given is not None:
            files["int8"] = given
            stages |= _stages(given)
        else:
            stages |= _loaded(files["float"])
        names = [name for name in stages if name != "float"]
        base = names[0] if given is not None else "float"
        about = load(files["int8" if given is not None else "float"]).metadata
        _warn_about_preparation(about, data)
        with clock("verify"):
            report = ladder(
                stages, follow(cfg, data.val_dataloader(), "evaluating"), base=base, free=("float",),
                tolerance=tolerance, hint="Evaluate on the machine that it was verified on, and compare the cards",
            )  # fmt: skip
        with clock("latency"):
            latency_ms = measure_latency(cfg, files, example)
    deployed = report.stages[-1]
    top1 = {"float": report.stages[0].top1} if "float" in stages else {}
    results = {
        "model": about.get("model", "unknown"),
        "recipe": about.get("recipe", "float"),
        "target": about.get("target", target.name),
        "top1": {**top1, **({"int8": deployed.top1} if given is not None else {})},
        "agreement": deployed.agreement,
        "examples": report.examples,
        "size_bytes": {name: file.size_bytes for name, file in files.items()},
        "latency_ms": latency_ms,
        "int8_mac_share": None,
        "passed": report.passed,
        "failures": list(report.failures),
        "departure": report.departure,
        "parity": [asdict(stage) for stage in report.stages],
        "base": base,
        "output_step": None,
        "coverage": covered(report, given) if given is not None else None,
        "notes": [f"evaluated: {given.path if given is not None else cfg.init_from or source.weights}"],
        **circumstances(cfg, clock),
        "sha256": {name: file.sha256 for name, file in files.items()},
    }
    conclude(results, folder)
    if cfg.report:
        both = given is not None and "float" in stages
        changed = [lambda: classes(cfg, lambda x: stages["float"](Inputs.of(x)), files["int8"], data, folder)]
        write_page(folder, *(changed if both else []))
    report.require()
    return results


def delivered(path: str | None, target: qat.Target) -> Artifact | None:
    """The file to evaluate, given itself or by the folder of its run; None for none.

    Raises:
        ConfigError: nothing is there, or a file that no runtime here runs.
    """
    if path is None:
        return None
    file = Path(path)
    if file.is_dir():
        file = file / f"int8{target.artifact}"
        if not file.is_file():
            raise ConfigError(
                f"evaluate.artifact={path} is a folder without {file.name}; give the folder of a run for "
                f"target={target.name}, or a file"
            )
    if not file.is_file():
        raise ConfigError(f"evaluate.artifact={path} is not there; give a file such as RUN/int8.onnx, or the folder")
    if file.suffix not in RUNTIMES.values():
        raise ConfigError(f"evaluate.artifact={path}: known suffixes are {', '.join(sorted({*RUNTIMES.values()}))}")
    found = _file(file)
    said = load(found).metadata.get("target")
    if said is not None and said != target.name:
        raise ConfigError(
            f"evaluate.artifact={path} was exported for target {said}, not {target.name}: use target={said}"
        )
    return found


def _file(path: Path) -> Artifact:
    return Artifact(path=path, target=None, inputs=(), outputs=())


def _in(runtime: Runtime) -> Run:
    def run(x: Any) -> Tensor:
        return runtime(*x.ordered(runtime.inputs))

    return run


def _loaded(artifact: Artifact) -> dict[str, Run]:
    """The file in its runtime: without optimizations where that can be had, and as it is deployed."""
    found = [load(artifact, optimize=False)] if artifact.kind == ".onnx" else []
    return {runtime.name: _in(runtime) for runtime in (*found, load(artifact))}


def _stages(given: Artifact) -> dict[str, Run]:
    """A delivered file, behind the integer model that its run left beside it, if that is the same model."""
    stages, beside = _loaded(given), given.path.with_name("int8.pt2")
    if beside == given.path or not beside.is_file() or not given.path.stem.startswith("int8"):
        return stages
    try:
        reference = load(_file(beside))
    except ArtifactError as error:
        log.warning("%s is compared without its reference: %s", given.path.name, error)
        return stages
    said = {load(given).metadata.get("fingerprint"), reference.metadata.get("fingerprint")}
    if len(said) > 1:
        log.warning("%s is of another model than %s, and is left out", beside.name, given.path.name)
        return stages
    return {REFERENCE: _in(reference), **stages}


def _warn_about_preparation(about: Any, data: ImageData) -> None:
    """A file says how its images were prepared; others give another top-1."""
    said, found = json.loads(about.get("preprocessing", "null")), preparation(data)
    if said is None or found is None:
        return
    found = json.loads(json.dumps(found))
    differ = [key for key in said if said[key] != found.get(key)]
    for key in differ:
        log.warning("the file was trained with %s %s, and data=... prepares %s", key, said[key], found.get(key))
