"""Tasks beside training, each through `run` as the command calls it, on a small float model and 360 digits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from qat.errors import ConfigError, ParityError
from qat.pipeline import run
from qat.pipeline.resumption import clear
from qat.pipeline.tasks import TASKS
from qat.pipeline.terminal import busy, follow

CONF = Path(__file__).parents[2] / "conf"
Config = Callable[..., DictConfig]
QUICK = ["model=resnet20", "trainer.enable_progress_bar=false", "latency.repeats=1", "report=false"]

pytestmark = pytest.mark.runtime


@pytest.fixture(scope="module")
def delivered(
    config: Config, tmp_path_factory: pytest.TempPathFactory, checkpoint: Path
) -> tuple[Path, dict[str, Any]]:
    """A run of `task=ptq`: its folder and results. The float model is untrained, and ties between classes are many."""
    folder = tmp_path_factory.mktemp("ptq")
    cfg = config(folder, "task=ptq", f"init_from={checkpoint}", "qat.calibration_batches=2", "verify.agreement=50",
                 "verify.top1=50")  # fmt: skip
    return folder, run(cfg)


def test_ptq_trains_nothing_and_delivers(delivered: tuple[Path, dict[str, Any]]) -> None:
    folder, results = delivered
    assert results["task"] == "ptq"
    assert "qat" not in results["seconds"]
    assert not (folder / "checkpoints").exists()
    assert (folder / "int8.onnx").is_file()
    assert json.loads((folder / "results.json").read_text()) == results


@pytest.mark.parametrize("given", ["", "int8.onnx"])
def test_evaluating_what_was_delivered_gives_its_numbers(
    config: Config, delivered: tuple[Path, dict[str, Any]], tmp_path: Path, given: str
) -> None:
    folder, before = delivered
    results = run(config(tmp_path, "task=evaluate", f"evaluate.artifact={folder / given}", "verify.top1=50",
                         "verify.agreement=50", "report=true"))  # fmt: skip
    assert results["top1"] == {"float": pytest.approx(before["top1"]["float"]), "int8": before["top1"]["int8"]}
    assert [stage["name"].split(",")[0].split(" ")[0] for stage in results["parity"]] == [
        "float", "integer", "onnxruntime", "onnxruntime",
    ]  # fmt: skip
    assert (results["recipe"], results["model"]) == ("w8a8", "ResNetCifar")
    assert results["size_bytes"] == before["size_bytes"]
    assert results["coverage"] == before["coverage"]
    assert (before["coverage"]["in_float"], before["coverage"]["islands"]) == ([], [])
    assert before["coverage"]["integer"] > 20  # convolutions, sums and what is between
    assert before["latency_batch_size"] == 1
    page = (tmp_path / "report.html").read_text()
    assert "Float and int8 disagree on" in page
    assert f"{before['coverage']['integer']} operators on integers, 0 in float" in page


def test_targets_whose_grids_differ(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one training cannot serve onnxruntime, tensorrt: activation_signed is True"):
        run(config(tmp_path, "also=[tensorrt]"))
    assert not list(tmp_path.rglob("*.onnx"))


def test_a_folder_that_is_used_again_keeps_nothing_of_the_report(tmp_path: Path) -> None:
    for resumed in (True, False):
        (tmp_path / "record").mkdir(exist_ok=True)
        (tmp_path / "record" / "qat.json").touch()
        clear(tmp_path, resumed=resumed)
        assert (tmp_path / "record").exists() == resumed


def test_quiet_takes_every_bar_away(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(cfg: DictConfig) -> dict[str, Any]:
        batches = [1, 2]
        bars = {"training": cfg.trainer.enable_progress_bar, "stages": follow(cfg, batches, "a") is not batches}
        return bars | {"busy": not isinstance(busy(cfg, "a"), nullcontext)}

    monkeypatch.setitem(TASKS, "ptq", shown)
    cfg = config(tmp_path, "task=ptq", "trainer.enable_progress_bar=true")
    assert set(run(cfg).values()) == {True}
    cfg.quiet = True
    assert set(run(cfg).values()) == {False}
    assert cfg.trainer.enable_progress_bar  # the caller's config is left alone


def test_evaluating_the_integer_program_alone(
    config: Config, delivered: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    lonely = tmp_path / "alone.pt2"
    lonely.write_bytes((delivered[0] / "int8.pt2").read_bytes())
    results = run(config(tmp_path / "run", "task=evaluate", f"evaluate.artifact={lonely}"))
    assert (set(results["top1"]), set(results["latency_ms"])) == ({"int8"}, {"int8"})
    assert results["passed"]


def test_a_file_of_another_target(config: Config, delivered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    file = delivered[0] / "int8.onnx"
    with pytest.raises(
        ConfigError, match=r"was exported for target onnxruntime, not executorch: use target=onnxruntime"
    ):
        run(config(tmp_path, "task=evaluate", "target=executorch", f"evaluate.artifact={file}"))


def test_a_reference_of_another_model_is_left_out(
    config: Config, delivered: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "int8.onnx").write_bytes((delivered[0] / "int8.onnx").read_bytes())
    (tmp_path / "int8.pt2").write_text("not a program")
    results = run(config(tmp_path / "run", "task=evaluate", f"evaluate.artifact={tmp_path}"))
    assert "int8.onnx is compared without its reference" in caplog.text
    assert results["base"].startswith("onnxruntime")


def test_images_prepared_in_another_way_are_named(
    config: Config, delivered: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ParityError, match=r"Evaluate on the machine that it was verified on"):
        run(config(tmp_path, "task=evaluate", f"evaluate.artifact={delivered[0]}", "data.mean=[0, 0, 0]",
                   "verify.agreement=101"))  # fmt: skip
    assert "the file was trained with mean [" in caplog.text


def test_evaluating_a_float_model(
    config: Config, checkpoint: Path, delivered: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    results = run(config(tmp_path, "task=evaluate", f"init_from={checkpoint}"))
    assert results["top1"] == {"float": pytest.approx(delivered[1]["top1"]["float"])}
    assert results["agreement"] == 100.0
    assert not list(tmp_path.glob("int8*"))


def test_the_command_ends_well_without_int8(checkpoint: Path, tmp_path: Path) -> None:
    """There is no objective in its results, and a report all the same."""
    overrides = [*QUICK[:-1], "task=evaluate", f"init_from={checkpoint}", f"run_dir={tmp_path}/run"]
    command = [sys.executable, str(CONF.parent / "train.py"), *overrides, f"cache_dir={tmp_path}/cache", "quiet=true"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "task evaluate" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=evalute"], r"unknown task 'evalute'. Did you mean evaluate\? Known: .*evaluate.*ptq.*qat"),
        (["task=ptq", "ckpt_path=a.ckpt"], r"ckpt_path resumes training, and task=ptq trains nothing"),
        (["task=evaluate", "ckpt_path=last"], r"ckpt_path resumes training, and task=evaluate trains nothing"),
        (["task=evaluate"], r"task=evaluate needs something to evaluate: evaluate\.artifact=FILE or the folder of a r"),
        (["task=evaluate", "evaluate.artifact=/nowhere"], r"evaluate\.artifact=/nowhere is not there; give a file"),
        (["task=evaluate", f"evaluate.artifact={CONF}"], r"is a folder without int8\.onnx; give the folder of a run"),
        (["task=evaluate", f"evaluate.artifact={CONF}/config.yaml"], r"known suffixes are \.onnx, \.pt2, \.pte, \.xml"),
        (["task=evaluate", "init_from=a.pt", "init_reset_head=true"], r"trains a new head, and task=evaluate trains n"),
    ],
)
def test_refused_before_anything_is_written(config: Config, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path, *overrides))
    assert not (tmp_path / "config.yaml").exists()
