"""The callback on two processes, however they are started: both end in the same bits, and one file is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from torch import nn

from qat.errors import ConfigError
from qat.recipe import QuantRecipe
from qat.training.strategy import adapt, look_for_unused, require_own_script, require_replicating

PROJECT = Path(__file__).with_name("project.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def train(folder: Path, *arguments: str, torchrun: bool = False) -> list[dict[str, Any]]:
    """How each process ended."""
    launcher = TORCHRUN if torchrun else []
    command = [sys.executable, *launcher, str(PROJECT), str(folder), *arguments]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=280, env=alone, cwd=folder)
    assert process.returncode == 0, process.stderr
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("strategy", "recipe", "sync", "torchrun"),
    [
        ("ddp", "w4a4_lsq", "synced", True),
        pytest.param("ddp", "w8a8", "own", False, marks=pytest.mark.slow),
        pytest.param("ddp_spawn", "w8a8", "own", False, marks=pytest.mark.slow),
    ],
)
def test_both_processes_end_in_the_same_bits(tmp_path, strategy, recipe, sync, torchrun):
    first, second = train(tmp_path, strategy, recipe, sync, torchrun=torchrun)
    assert first["state"].keys() == second["state"].keys()
    assert [k for k, v in first["state"].items() if not torch.equal(v, second["state"][k])] == []
    assert (first["processes"], second["processes"]) == (2, 2)
    learn, frozen, norms = "learn ranges", "ranges frozen", "ranges and BatchNorm statistics frozen"
    # 24 images, 4 in a batch of each of two processes: 3 steps in each of 2 epochs
    assert first["phases"] == second["phases"] == [learn] * 3 + [frozen] * 2 + [norms]
    assert first["agreement"] == second["agreement"] == 100.0
    assert first["top1"] == second["top1"]
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "rank0.pt", "rank1.pt"]


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_are_refused(kind):
    with pytest.raises(ConfigError, match=rf"{kind.__name__} shards parameters .* takes strategy=\"ddp\""):
        require_replicating(kind)
    require_replicating(DDPStrategy)


def test_processes_that_keep_what_they_prepare_are_refused():
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False, enable_checkpointing=False)
    trainer.strategy._configure_launcher()
    assert isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    with pytest.raises(ConfigError, match=r'started by spawn keep the prepared network .* strategy="ddp"'):
        require_own_script(trainer.strategy)


def test_ddp_is_told_to_look_for_ranges_that_join_later():
    lsq, observed = (QuantRecipe.parse(name) for name in ("w4a4_lsq", "w8a8"))
    for recipe, wanted in ((lsq, {"find_unused_parameters": True}), (observed, {})):
        strategy = DDPStrategy()
        look_for_unused(strategy, recipe)
        assert strategy._ddp_kwargs == wanted
    with pytest.raises(ConfigError, match="recipe w4a4_lsq trains ranges that are no part of the loss at first"):
        look_for_unused(DDPStrategy(find_unused_parameters=False), lsq)


def test_lightnings_switch_for_batchnorm_leaves_quantizers_where_they_are():
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", sync_batchnorm=True, logger=False, enable_checkpointing=False
    )
    adapt(trainer.strategy)
    synced = trainer.strategy._layer_sync.apply(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert type(synced[1]) is nn.SyncBatchNorm
    assert type(trainer.strategy._layer_sync.revert(synced)[1]) is not nn.SyncBatchNorm
