"""`train.py` on two processes: one run folder, one card, one file; the same end in both, good or bad."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qat.models import resnet20

ROOT = Path(__file__).parents[2]
SMALL = ["model=resnet20", "trainer=ddp_cpu", "float.epochs=1", "qat.epochs=2", "qat.calibration_batches=2",
         "latency.repeats=1", "report=false", "quiet=true", "trainer.limit_train_batches=4",
         "trainer.limit_val_batches=2", "trainer.num_sanity_val_steps=0", "verify.agreement=0",
         "verify.top1=100"]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def start(folder: Path, *overrides: str, torchrun: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, *(TORCHRUN if torchrun else []), str(ROOT / "train.py"), *SMALL,
               f"cache_dir={folder}/cache", f"hydra.run.dir={folder}/run", *overrides]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    return subprocess.Popen(command, cwd=folder, env=alone, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(folder: Path, *overrides: str, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    process = start(folder, *overrides, torchrun=torchrun)
    out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("torchrun", [False, True])
def test_a_run_on_two_processes_ends_as_one(tmp_path, torchrun):
    process = run(tmp_path, torchrun=torchrun)
    assert process.returncode == 0, process.stderr
    said = process.stdout + process.stderr
    for line in ("float baseline kept at", "QAT top-1", "Parity on 360"):
        assert said.count(line) == 1, said
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["examples"] == 360  # the first process verifies on all of them
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 8  # 4 batches of each process in each epoch
    assert not list(tmp_path.glob("outputs"))
    again = run(tmp_path, "ckpt_path=last", f"hydra.run.dir={tmp_path}/another")
    assert again.returncode != 0  # it had ended
    assert "no interrupted run" in again.stderr
    assert again.stderr.count("no interrupted run") == 1


@pytest.mark.slow
@pytest.mark.runtime
def test_killed_and_resumed_it_ends_in_the_same_bytes(tmp_path):
    whole = run(tmp_path, f"hydra.run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    process = start(tmp_path, f"hydra.run.dir={tmp_path}/killed")
    while not (tmp_path / "killed" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()  # the first process; the other one ends by itself, and lets go of what it inherited
    process.communicate(timeout=60)
    assert not (tmp_path / "killed" / "results.json").exists()
    again = run(tmp_path, f"hydra.run.dir={tmp_path}/killed", "ckpt_path=last")
    assert again.returncode == 0, again.stderr
    one, other = ((tmp_path / name / "int8.onnx").read_bytes() for name in ("whole", "killed"))
    assert one == other


@pytest.mark.slow
@pytest.mark.runtime
def test_both_fail_where_the_first_one_does(tmp_path):
    torch.save(resnet20().state_dict(), tmp_path / "float.pt")
    began = time.monotonic()
    process = run(tmp_path, f"init_from={tmp_path}/float.pt", "verify.in_float=0", "quant.exclude=[fc]")
    assert process.returncode == 1
    assert process.stderr.count("ParityError") == 1, process.stderr
    assert "Traceback" not in process.stderr
    assert time.monotonic() - began < 200  # nobody waits for anybody


@pytest.mark.slow
def test_what_shards_and_sweeps_of_several_processes_are_refused(tmp_path):
    sharded = run(tmp_path, "trainer.strategy=fsdp", "trainer.accelerator=cpu")
    assert sharded.returncode == 1
    assert "ConfigError" in sharded.stderr
    sweep = run(tmp_path, "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep", "hydra.mode=MULTIRUN")
    assert sweep.returncode == 1
    assert "ask for 2 processes, and a sweep runs each job in one" in " ".join(sweep.stdout.split())


@pytest.mark.slow
@pytest.mark.runtime
def test_two_machines_are_tried_on_one(tmp_path):
    """The commands of docs/scaling.md: a torchrun for each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    both = []
    for rank in (0, 1):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}",
                    "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]  # fmt: skip
        both.append(subprocess.Popen(
            [*torchrun, str(ROOT / "train.py"), *SMALL, "trainer.num_nodes=2", "trainer.devices=1",
             f"cache_dir={tmp_path}/cache", f"hydra.run.dir={tmp_path}/run"],
            cwd=tmp_path, env=alone, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ))  # fmt: skip
    said = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "".join(out for out, _ in said).count("Parity on 360") == 1
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 8
    assert (tmp_path / "run" / "int8.onnx").is_file()


@pytest.mark.slow
@pytest.mark.runtime
def test_asked_to_stop_both_stop_behind_the_same_step(tmp_path):
    whole = run(tmp_path, f"hydra.run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    process = start(tmp_path, f"hydra.run.dir={tmp_path}/stopped")
    while not (tmp_path / "stopped" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()  # the first process alone hears of it
    out, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert "To go on: python train.py" in err
    assert (tmp_path / "stopped" / "checkpoints" / "last-interrupted.ckpt").is_file(), out
    again = run(tmp_path, f"hydra.run.dir={tmp_path}/stopped", "ckpt_path=last")
    assert again.returncode == 0, again.stderr
    one, other = ((tmp_path / name / "int8.onnx").read_bytes() for name in ("whole", "stopped"))
    assert one == other
