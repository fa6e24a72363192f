"""What helps training, on two processes: both end in the same bits with each aid, and go there step by step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

WORKER = Path(__file__).with_name("aids.py")
AIDS = [
    "ema", "ema, one scale", "ema, accumulated", "damped", "frozen", "mixup", "mixed widths", "activations later",
    "trained activations later", "features", "statistics", "all",
]  # fmt: skip
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OWN = ("running_mean", "running_var")  # each process's own between two steps: the next takes the first one's


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What rank 0 and rank 1 found."""
    folder = tmp_path_factory.mktemp("aids")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER), folder]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=850, env=alone, cwd=folder)
    assert process.returncode == 0, process.stderr
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    return first, second


def unequal(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [k for k in one if not torch.equal(one[k], other[k])]


@pytest.mark.parametrize("aid", ["plain", *AIDS])
def test_both_processes_end_in_the_same_bits(found, aid):
    first, second = (result[aid] for result in found)
    assert unequal(first["state"], second["state"]) == []
    assert first["top1"] == second["top1"]
    assert len(first["steps"]) == len(second["steps"]) == 12  # 32 images, 4 in a batch of each of two; 3 epochs
    for one, other in zip(first["steps"], second["steps"], strict=True):
        assert [k for k in unequal(one, other) if not k.endswith(OWN)] == []
    assert unequal(first["frozen"], second["frozen"]) == []


@pytest.mark.parametrize("aid", AIDS)
def test_each_aid_made_a_difference(found, aid):
    plain, aided = (found[0][name]["state"] for name in ("plain", aid))
    assert not torch.equal(plain["model.fc.weight"], aided["model.fc.weight"]) or aid == "statistics"
    assert not torch.equal(plain["model.norm.running_mean"], aided["model.norm.running_mean"])


def test_weights_were_frozen_and_widths_were_mixed(found):
    assert any(mask.any() for mask in found[0]["frozen"]["frozen"].values())
    assert found[0]["mixed widths"]["bits"]["conv.weight_quantizer"] == 4
    assert found[0]["mixed widths"]["bits"]["fc.weight_quantizer"] == 7  # what onnxruntime stores of 8
