"""The launchers of docs/scaling.md, on this machine: a sweep by submitit, and a project whose processes Ray starts.

Each needs a package that is in no group of the dependencies, and is skipped without it:
`hydra-submitit-launcher`, `ray[train]`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SMALL = ["model=resnet20", "data.image_size=8", "float.epochs=1", "qat.epochs=2", "qat.calibration_batches=2",
         "latency.repeats=1", "report=false", "quiet=true", "trainer.limit_train_batches=4", "trainer.accelerator=cpu",
         "trainer.limit_val_batches=2", "verify.agreement=0", "verify.top1=100"]  # fmt: skip
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def sweep(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_local", *SMALL,
               f"cache_dir={folder}/cache", f"hydra.sweep.dir={folder}/sweep", *overrides]  # fmt: skip
    return subprocess.Popen(command, cwd=folder, env=ALONE, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def process_of(job: Path) -> int:
    """The process of submitit's job, a child of the one that its folder is named after."""
    children = Path(f"/proc/{job.name}/task/{job.name}/children").read_text().split()
    return int(children[0])


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the process of a job in /proc")
def test_a_sweep_by_submitit_and_a_job_that_is_asked_to_give_way(tmp_path: Path) -> None:
    """SIGUSR2 comes before the time of a job is over: it is started again, and goes on from its last epoch."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    process = sweep(tmp_path, "quant=w8a8", "ckpt_path=last")
    while not (tmp_path / "sweep" / "0" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    (job,) = [folder for folder in (tmp_path / "sweep" / ".submitit").iterdir() if folder.name.isdigit()]
    os.kill(process_of(job), signal.SIGUSR2)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert f"Sweep in {tmp_path}/sweep" in " ".join(out.split())
    said = next(job.glob("*_log.out")).read_text()
    assert "Requeued job" in said
    assert "goes on from last.ckpt" in said
    assert (tmp_path / "sweep" / "0" / "results.json").is_file()


RAY = """
import sys
from functools import partial

import pytorch_lightning as pl
import ray
import ray.train.lightning
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qat
from qat.training import Classifier

folder = sys.argv[1]


class Keep(pl.Callback):
    def on_fit_end(self, trainer, module):
        torch.save({k: v.clone() for k, v in module.state_dict().items()}, f"{folder}/rank{trainer.global_rank}.pt")


def train():
    torch.manual_seed(0)
    images, labels = torch.randn(32, 3, 8, 8), torch.arange(32) % 4
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                            nn.Flatten(), nn.Linear(4, 4))
    module = Classifier(network, num_classes=4, optimizer=partial(torch.optim.SGD, lr=0.05))
    callback = qat.QuantizationAwareTraining(recipe="w8a8", target="onnxruntime", export=f"{folder}/model.onnx")
    trainer = pl.Trainer(
        accelerator="cpu",
        devices="auto",
        max_epochs=2,
        enable_checkpointing=False,
        strategy=ray.train.lightning.RayDDPStrategy(),
        plugins=[ray.train.lightning.RayLightningEnvironment()],
        callbacks=[callback, Keep()],
        logger=False,
        enable_progress_bar=False,
    )
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    ray.train.lightning.prepare_trainer(trainer).fit(module, loader, loader)
    assert trainer.world_size == 2
    assert callback.report.passed


ray.init(num_cpus=2, include_dashboard=False)
scaling = ScalingConfig(num_workers=2, use_gpu=False)
TorchTrainer(train, scaling_config=scaling, run_config=RunConfig(storage_path=f"{folder}/ray")).fit()
"""


@pytest.mark.slow
@pytest.mark.runtime
def test_a_project_whose_processes_ray_starts(tmp_path: Path) -> None:
    """The block of docs/scaling.md on the CPU: both workers end in the same bits, and one file is written."""
    pytest.importorskip("ray")
    command = [sys.executable, "-c", RAY, str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path, env=ALONE, text=True, capture_output=True, timeout=280)
    assert process.returncode == 0, process.stdout + process.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert first.keys() == second.keys()
    assert [k for k, v in first.items() if not torch.equal(v, second[k])] == []
    assert (tmp_path / "model.onnx").is_file()
