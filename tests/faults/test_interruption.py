"""A run that is killed at any moment, or asked to stop, goes on with `ckpt_path=last` and ends in the same bytes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch

ROOT = Path(__file__).parents[2]
TINY = ["model=resnet20", "float.epochs=1", "qat.epochs=2", "qat.calibration_batches=2",
        "latency.repeats=1", "report=false", "trainer.enable_progress_bar=false", "trainer.limit_train_batches=4",
        "trainer.limit_val_batches=1", "trainer.num_sanity_val_steps=0",
        "verify.agreement=0", "verify.top1=100"]  # fmt: skip


def start(folder: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), *TINY, f"cache_dir={folder}/cache",
               f"hydra.run.dir={folder}/{name}", *overrides]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.Popen(command, cwd=folder, env=alone, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    return out, err


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def require_same(one: Path, other: Path) -> None:
    """Bytes of the artefact; weights, ranges and optimizer of the last checkpoint."""
    assert (one / "int8.onnx").read_bytes() == (other / "int8.onnx").read_bytes()
    a, b = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, other))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    assert [k for k, v in a["state_dict"].items() if not torch.equal(v, b["state_dict"][k])] == []
    assert a["qat"]["ranges"].keys() == b["qat"]["ranges"].keys()
    assert [k for k, v in a["qat"]["ranges"].items() if not torch.equal(v, b["qat"]["ranges"][k])] == []
    assert (a["epoch"], a["global_step"]) == (b["epoch"], b["global_step"])


def require_whole(run: Path) -> None:
    """Whatever has a final name can be read."""
    for path in run.rglob("*.ckpt"):
        if not path.name.startswith("."):
            torch.load(path, weights_only=True)
    for path in run.glob("[!.]*.onnx"):
        onnx.checker.check_model(onnx.load(path), full_check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The uninterrupted run, and how long it took."""
    folder, began = tmp_path_factory.mktemp("interruption"), time.monotonic()
    finish(start(folder, "whole"))
    return folder / "whole", time.monotonic() - began


@pytest.mark.runtime
def test_killed_between_two_epochs(whole: tuple[Path, float], tmp_path: Path) -> None:
    run, _ = whole
    (tmp_path / "cache").symlink_to(run.parent / "cache")
    process = start(tmp_path, "runs/killed")
    wait_for(process, tmp_path / "runs" / "killed" / "checkpoints" / "last.ckpt")
    process.kill()
    process.communicate()
    require_whole(tmp_path / "runs" / "killed")
    assert not (tmp_path / "runs" / "killed" / "results.json").exists()
    out, _ = finish(start(tmp_path, "runs/again", "ckpt_path=last"))
    assert "runs/killed goes on from its last epoch" in out
    require_same(tmp_path / "runs" / "killed", run)


@pytest.mark.runtime
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop(whole: tuple[Path, float], tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "cache").symlink_to(whole[0].parent / "cache")
    process = start(tmp_path, "run", "qat.epochs=1000")
    wait_for(process, tmp_path / "run" / "checkpoints" / "last.ckpt")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert re.search(rf"stopped by {number.name}\. To go on: python train\.py .*qat\.epochs=1000.* ckpt_path=last", err)
    assert "Traceback" not in err
    require_whole(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("moment", range(20))
def test_killed_at_any_moment(whole: tuple[Path, float], tmp_path: Path, moment: int) -> None:
    run, seconds = whole
    process = start(tmp_path, "runs/killed")  # without the cache: the float baseline is interrupted too
    begun = tmp_path / "runs" / "killed" / "config.yaml"
    began = time.monotonic()
    wait_for(process, begun)
    # from there to the end of an undisturbed run
    time.sleep((seconds - (time.monotonic() - began)) * moment / 20)
    process.kill()
    process.communicate()
    require_whole(tmp_path / "runs" / "killed")
    if not (tmp_path / "runs" / "killed" / "results.json").exists():
        finish(start(tmp_path, "runs/again", "ckpt_path=last"))
    require_same(tmp_path / "runs" / "killed", run)
