"""Two processes find what one finds in the joint batch: ranges to the last bit, training within float32's rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("numerics.py")
ROUNDING = {"atol": 1e-5, "rtol": 1e-5}  # sums in another order, through three steps of training
# a value near a tie may land on the next step: then gradients differ by one value's share
FLIPS = {"atol": 2e-3, "rtol": 2e-3}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What rank 0, rank 1, and one process alone found."""
    folder = tmp_path_factory.mktemp("numerics")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER), folder]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=200, env=alone, cwd=folder)
    assert process.returncode == 0, process.stderr
    first, second, joint = (torch.load(folder / f"{name}.pt") for name in ("rank0", "rank1", "alone"))
    return first, second, joint


@pytest.mark.parametrize("axis", ["", ", per channel"])
@pytest.mark.parametrize("observer", ["min_max", "latest", "moving_average", "histogram", "percentile"])
def test_ranges_are_the_same_in_both(found, observer, axis):
    first, second, joint = (result[observer + axis] for result in found)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if observer != "percentile":  # the mean of two percentiles is not the percentile of all
        assert all(torch.equal(a, b) for a, b in zip(first, joint, strict=True))


@pytest.mark.parametrize("how", ["trained", "trained, lsq", "trained, synced", "trained, synced before"])
def test_weights_scales_and_zero_points_are_the_same_in_both(found, how):
    first, second, joint = (result[how] for result in found)
    assert first.keys() == second.keys() == joint.keys()
    # without synchronisation, statistics are each process's own until the next step takes the first one's
    own = {k for k in first if "running_" in k and "synced" not in how}
    assert [k for k in first.keys() - own if not torch.equal(first[k], second[k])] == []
    assert any("scale" in k or "step" in k for k in first)


@pytest.mark.parametrize("how", ["trained, synced", "trained, synced before"])
def test_synchronised_batchnorm_trains_as_on_the_joint_batch(found, how):
    first, _, joint = (result[how] for result in found)
    for key, value in joint.items():
        exact = "running_" in key or "num_batches" in key
        torch.testing.assert_close(
            first[key], value, **(ROUNDING if exact else FLIPS), msg=lambda m, k=key: f"{k}: {m}"
        )


def test_both_stop_where_one_has_nan(found):
    first, second, _ = found
    assert "loss of another process is not finite at step 3" in first["loss"]
    assert "the loss is nan at step 3" in second["loss"]
    assert (first["finite"], second["finite"]) == ("", "")
    assert "NaN or Inf reached" in first["poisoned"]
    assert first["poisoned"] == second["poisoned"]
    assert first["any"] == second["any"] == [True, False]


def test_the_first_decides_and_works_and_all_end_alike(found):
    first, second = (result["together"] for result in found[:2])
    assert (first.pop("first"), second.pop("first")) == (True, False)
    assert first.pop("failed") == "ZeroDivisionError: division by zero"
    assert second.pop("failed") == "ProcessError: the first process failed: ZeroDivisionError: division by zero"
    assert first == second == {"agreed": {"rank": 0}, "worked": "by 0", "alike": [0.0, 0.0, 0.0]}


def test_calibration_ends_with_the_shortest(found):
    assert [result["calibrated on"] for result in found[:2]] == [2, 2]
