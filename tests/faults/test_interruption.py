"""A run that is killed at any moment, or asked to stop, goes on with `ckpt_path=last` and ends in the same bytes."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # the operators of int8.pt2
import yaml
from safetensors.torch import load_file

from qat.files import TEMPORARY

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
    readers = {
        ".ckpt": lambda path: torch.load(path, weights_only=True),
        ".onnx": lambda path: onnx.checker.check_model(onnx.load(path), full_check=True),
        ".pt2": torch.export.load,
        ".json": lambda path: json.loads(path.read_text()),
        ".yaml": lambda path: yaml.safe_load(path.read_text()),
        ".safetensors": load_file,
        ".html": lambda path: path.read_text().index("</html>"),
    }
    cache = run.parent.parent / "cache"
    for path in (*run.rglob("[!.]*"), *cache.glob("[!.]*")):
        if path.is_file() and path.suffix in readers:
            readers[path.suffix](path)


def require_tidy(run: Path) -> None:
    """What was being written when the process was killed is gone."""
    assert [path for path in run.rglob(".*") if TEMPORARY.fullmatch(path.name)] == []


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
    assert "runs/killed goes on from last.ckpt" in out
    require_tidy(tmp_path / "runs" / "killed")
    require_same(tmp_path / "runs" / "killed", run)


@pytest.mark.runtime
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_asked_to_stop(whole: tuple[Path, float], tmp_path: Path, number: signal.Signals) -> None:
    """Inside an epoch: it goes on there, and ends in the same bytes."""
    run, _ = whole
    (tmp_path / "cache").symlink_to(run.parent / "cache")
    process = start(tmp_path, "runs/stopped")
    wait_for(process, tmp_path / "runs" / "stopped" / "checkpoints" / "last.ckpt")  # of the first epoch of two
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert re.search(rf"stopped by {number.name}\. To go on: python train\.py .*qat\.epochs=2.* ckpt_path=last", err)
    assert "Traceback" not in err
    require_whole(tmp_path / "runs" / "stopped")
    stopped = torch.load(tmp_path / "runs" / "stopped" / "checkpoints" / "last-interrupted.ckpt", weights_only=True)
    assert f"stopped by {number.name} at step {stopped['global_step']}" in out
    assert stopped["global_step"] in range(4, 9)
    out, _ = finish(start(tmp_path, "runs/again", "ckpt_path=last"))
    assert "runs/stopped goes on from last-interrupted.ckpt" in out
    require_same(tmp_path / "runs" / "stopped", run)
    assert not (tmp_path / "runs" / "stopped" / "checkpoints" / "last-interrupted.ckpt").exists()


MOMENTS = sorted(random.Random(20).sample(range(1000), 20))  # the same in every session


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment(whole: tuple[Path, float], tmp_path: Path, moment: int) -> None:
    """`moment`: thousandths of the way from its beginning to the end of an undisturbed run."""
    run, seconds = whole
    killed = tmp_path / "runs" / "killed"
    process = start(tmp_path, "runs/killed")  # without the cache: the float baseline is interrupted too
    began = time.monotonic()
    wait_for(process, killed / "config.yaml")
    time.sleep(max(0.0, (seconds - (time.monotonic() - began)) * moment / 1000))
    process.kill()
    process.communicate()
    require_whole(killed)
    if not (killed / "results.json").exists():
        finish(start(tmp_path, "runs/again", "ckpt_path=last"))
        require_tidy(killed)
    require_same(killed, run)
