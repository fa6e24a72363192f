"""A run goes on in its folder: from what, and what it takes away first; the float baseline too."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from qat.errors import ConfigError
from qat.pipeline import run
from qat.pipeline.baseline import float_baseline
from qat.pipeline.resumption import checkpoint_of, clear, resumed
from qat.pipeline.source import read_source
from qat.settings import build
from qat.training import Classifier

CONF = Path(__file__).parents[2] / "conf"
pytestmark = pytest.mark.filterwarnings("ignore")  # a run shows none of Lightning's either (terminal.quiet)


def config(folder: Path, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [
            f"run_dir={folder}", f"cache_dir={folder}/cache", "model=resnet20", "float.epochs=3", "quiet=true",
            "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.enable_progress_bar=false",
            "trainer.accelerator=cpu", "data.image_size=8", "trainer.log_every_n_steps=1", *overrides,
        ])  # fmt: skip


class KilledError(Exception):
    pass


def baseline(cfg: DictConfig) -> Classifier:
    pl.seed_everything(cfg.seed, verbose=False)
    data = build(cfg, "data")
    data.setup()
    return float_baseline(cfg, read_source(cfg), data)


def steps(folder: Path) -> list[str]:
    with (folder / "float" / "metrics.csv").open(newline="") as file:
        return [row["step"] for row in csv.DictReader(file) if row.get("train/loss")]


def test_the_float_baseline_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = baseline(config(tmp_path / "whole"))

    def die(self: Classifier) -> None:
        if self.current_epoch == 2:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "on_train_epoch_start", die)
        with pytest.raises(KilledError):
            baseline(config(tmp_path / "part"))
    checkpoint = tmp_path / "part" / "checkpoints" / "float" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1
    (tmp_path / "part" / "config.yaml").write_text("")
    cfg = resumed(config(tmp_path / "part", "ckpt_path=last"))
    assert (cfg.ckpt_path, checkpoint_of(cfg, "qat")) == (str(checkpoint), None)
    goes_on = baseline(cfg)
    state, other = whole.model.state_dict(), goes_on.model.state_dict()
    assert [key for key in state if not torch.equal(state[key], other[key])] == []
    assert not checkpoint.exists()
    assert steps(tmp_path / "part") == steps(tmp_path / "whole") == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.slow
@pytest.mark.runtime
def test_what_training_goes_on_from_is_not_calibrated_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (
        "float.epochs=1", "qat.epochs=2", "quant=w4a8", "qat.adaround={images: 8, iterations: 3}",
        "qat.calibration_batches=2", "verify.agreement=0", "verify.top1=100", "latency.repeats=1", "report=false",
        f"cache_dir={tmp_path}/cache",
    )  # fmt: skip
    whole = run(config(tmp_path / "whole", *settings))

    def die(self: Classifier) -> None:
        if self.current_epoch == 1:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "on_train_epoch_start", die)
        with pytest.raises(KilledError):
            run(config(tmp_path / "part", *settings))
    with monkeypatch.context() as patched:
        for verb in ("qat.training.callback.calibrate", "qat.pipeline.helpers.adaround"):
            patched.setattr(verb, None)  # called, it would raise
        caplog.set_level("INFO", logger="qat")
        goes_on = run(config(tmp_path / "part", *settings, "ckpt_path=last"))
    assert "weights and ranges from" in caplog.text
    assert goes_on["top1"] == whole["top1"]
    one, other = ((tmp_path / name / "int8.onnx").read_bytes() for name in ("whole", "part"))
    assert one == other
    # a folder that does not say what calibration had found: it is measured again, and the end is the same
    (tmp_path / "part" / "calibrated.json").unlink()
    (tmp_path / "part" / "results.json").unlink()
    assert run(config(tmp_path / "part", *settings, "ckpt_path=last"))["top1"] == whole["top1"]
    assert (tmp_path / "part" / "int8.onnx").read_bytes() == one


def written(path: Path, when: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    os.utime(path, (when, when))
    return path


def test_the_newest_checkpoint_of_the_last_stage(tmp_path: Path) -> None:
    def found() -> Any:
        return resumed(config(tmp_path, "ckpt_path=last")).ckpt_path

    written(tmp_path / "config.yaml", 1)
    assert found() is None
    of_float = written(tmp_path / "checkpoints" / "float" / "last-interrupted.ckpt", 30)
    assert found() == str(of_float)
    assert checkpoint_of(config(tmp_path, f"ckpt_path={of_float}"), "float") == str(of_float)
    last = written(tmp_path / "checkpoints" / "last.ckpt", 10)
    assert found() == str(last)
    stopped = written(tmp_path / "checkpoints" / "last-interrupted.ckpt", 20)
    assert found() == str(stopped)
    assert checkpoint_of(config(tmp_path, f"ckpt_path={stopped}"), "qat") == str(stopped)


def test_what_a_run_takes_away(tmp_path: Path) -> None:
    stays = [tmp_path / "notes.txt", tmp_path / ".hydra" / "config.yaml", tmp_path / ".lock"]
    always = [
        tmp_path / "error.txt",
        tmp_path / "checkpoints" / ".last-a1b2c3_4.ckpt",
        tmp_path / ".int8-abcdefgh.onnx",
    ]
    fresh = [
        tmp_path / "calibrated.json", tmp_path / "qat" / "metrics.csv", tmp_path / "checkpoints" / "best.ckpt",
        tmp_path / "checkpoints" / "float" / "last.ckpt",
    ]  # fmt: skip
    for path in (*stays, *always, *fresh):
        written(path, 1)
    clear(tmp_path, resumed=True)
    assert [path.exists() for path in (*stays, *always, *fresh)] == [True] * 3 + [False] * 3 + [True] * 4
    clear(tmp_path, resumed=False)
    assert not any(path.exists() for path in fresh)


@pytest.mark.parametrize(("task", "path"), [("evaluate", "last"), ("ptq", "checkpoints/last.ckpt")])
def test_tasks_that_train_nothing_resume_nothing(tmp_path: Path, task: str, path: str) -> None:
    with pytest.raises(ConfigError, match=f"task={task} trains nothing"):
        run(config(tmp_path, f"task={task}", f"ckpt_path={path}"))
