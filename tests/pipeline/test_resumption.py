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
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from qat.errors import CheckpointError, ConfigError
from qat.models import resnet20
from qat.pipeline import run
from qat.pipeline.baseline import float_baseline
from qat.pipeline.calibration import calibrated
from qat.pipeline.callback import build_callback
from qat.pipeline.classifier import build_classifier
from qat.pipeline.helpers import read_helpers
from qat.pipeline.resumption import checkpoint_of, clear, resumed
from qat.pipeline.source import read_source
from qat.pipeline.trainer import fit
from qat.pipeline.wanted import read_recipe, read_targets
from qat.settings import build
from qat.target import joint
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


def trained(cfg: DictConfig) -> tuple[float, dict[str, Tensor]]:
    """The stages of a run up to training: top-1 after calibration, and what training leaves."""
    pl.seed_everything(cfg.seed, verbose=False)
    data = build(cfg, "data")
    data.setup()
    callback = build_callback(cfg, read_recipe(cfg), joint(read_targets(cfg)))
    module = build_classifier(cfg, "qat", resnet20(num_classes=10), data)
    callback.prepare(module, (next(iter(data.calibration_dataloader()))[0][:2],))
    checkpoint = checkpoint_of(cfg, "qat")
    top1 = calibrated(cfg, callback, read_helpers(cfg), module, data, checkpoint)
    fit(cfg, "qat", module, data, Path(cfg.run_dir), callback, ckpt_path=checkpoint)
    return top1, {k: v.clone() for k, v in module.state_dict().items()}


def test_what_training_goes_on_from_is_not_calibrated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounded = (
        "qat.epochs=2",
        "quant=w4a8",
        "qat.calibration_batches=1",
        "qat.adaround={images: 8, iterations: 2}",
    )
    whole = trained(config(tmp_path / "whole", *rounded))

    def die(self: Classifier) -> None:
        if self.current_epoch == 1:
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Classifier, "on_train_epoch_start", die)
        with pytest.raises(KilledError):
            trained(config(tmp_path / "part", *rounded))
    left = tmp_path / "part" / "checkpoints" / "last.ckpt"
    goes_on = config(tmp_path / "part", *rounded, f"ckpt_path={left}")
    kept = left.read_bytes()
    with monkeypatch.context() as patched:
        for verb in ("qat.training.callback.calibrate", "qat.pipeline.helpers.adaround"):
            patched.setattr(verb, None)  # called, it would raise
        again = trained(goes_on)
    # a folder that does not say what calibration had found: it is measured again, and the end is the same
    left.write_bytes(kept)
    (tmp_path / "part" / "calibrated.json").unlink()
    measured = trained(goes_on)
    for top1, state in (again, measured):
        assert top1 == whole[0]
        assert [key for key, tensor in whole[1].items() if not torch.equal(tensor, state[key])] == []


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


def test_last_is_the_run_with_the_same_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def asked(*given: str) -> Any:
        return resumed(config(tmp_path / "new", "ckpt_path=last", *given)).run_dir

    for when, given in enumerate((("seed=0",), ("seed=1",), ("seed=2", "qat.optimizer.lr=0.5")), 10):
        folder = tmp_path / f"run{when - 10}"
        written(folder / "config.yaml", when)
        OmegaConf.save(config(folder, *given), folder / "config.yaml")
        os.utime(folder / "config.yaml", (when, when))
    assert [asked(f"seed={seed}") for seed in (0, 1)] == [str(tmp_path / f"run{seed}") for seed in (0, 1)]
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    assert asked("seed=2") == str(tmp_path / "run2")
    assert f"{tmp_path / 'run2'} was begun with another qat.optimizer.lr; it goes on with" in caplog.text
    with pytest.raises(CheckpointError, match="was begun with task=qat, and task=ptq cannot go on there"):
        asked("task=ptq", "seed=1")


def test_a_run_that_went_on_and_has_no_checkpoint_goes_on_from_the_same(tmp_path: Path) -> None:
    start = written(tmp_path / "first" / "checkpoints" / "last.ckpt", 1)
    (tmp_path / "run").mkdir()
    OmegaConf.save(config(tmp_path / "run", f"ckpt_path={start}"), tmp_path / "run" / "config.yaml")
    assert resumed(config(tmp_path / "run", "ckpt_path=last")).ckpt_path == str(start)


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
