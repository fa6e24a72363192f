"""Runs that meet bad luck: odd batches, a dead worker, a folder in use, a stale error."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from qat.errors import CheckpointError, ConfigError, DataError, NumericsError
from qat.pipeline import run
from qat.report.objective import read_failure, write_failure
from qat.training import Classifier, QuantizationAwareTraining, held, run_to_resume
from qat.training.workers import explained_workers

CONF = Path(__file__).parents[2] / "conf"


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def fit(network: nn.Module, images: Tensor, *, batch_size: int, folder: Path, **options) -> Classifier:
    labels = torch.arange(len(images)) % 5
    loader = DataLoader(TensorDataset(images, labels), batch_size, **options)
    module = Classifier(network.train(), num_classes=5, optimizer=lambda p: torch.optim.SGD(p, lr=0.01))
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[QuantizationAwareTraining()],
    )  # fmt: skip
    trainer.fit(module, loader)
    return module


pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
    pytest.mark.filterwarnings("ignore:.*You defined a `validation_step`"),
]


@pytest.mark.parametrize(("count", "batch_size"), [(3, 1), (7, 4), (5, 4)])
def test_batches_of_one_and_a_last_incomplete_one(
    small_net: nn.Module, images: Tensor, tmp_path: Path, count: int, batch_size: int
) -> None:
    module = fit(small_net, images[:count], batch_size=batch_size, folder=tmp_path)
    assert all(bool(torch.isfinite(v).all()) for v in module.state_dict().values())


def test_a_nan_at_a_step_ends_the_run(small_net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    images = images.repeat(3, 1, 1, 1)  # 48 images, 12 batches; the first 8 calibrate
    images[41] = torch.nan
    with pytest.raises(NumericsError, match=r"the loss is nan at step 10; first not finite: .*the batch itself"):
        fit(small_net, images, batch_size=4, folder=tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with held(tmp_path), pytest.raises(ConfigError, match=r"another run is writing to .*; leave hydra\.run\.dir out"):
        run(config(f"run_dir={tmp_path}"))
    assert not (tmp_path / "config.yaml").exists()


def test_a_run_in_the_folder_of_a_failed_one_drops_its_error(tmp_path: Path) -> None:
    for name in ("results.json", "checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of an earlier run")
    write_failure(tmp_path, ConfigError("stale"))
    with pytest.raises(CheckpointError, match="nowhere"):  # after the config was found right
        run(config(f"run_dir={tmp_path}", "init_from=nowhere.pt", "model=resnet20"))
    assert not read_failure(tmp_path)
    assert not (tmp_path / "results.json").exists()
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def begun(folder: Path, when: int, *, ended: bool = False) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("")
    os.utime(folder / "config.yaml", (when, when))
    if ended:
        (folder / "results.json").write_text("{}")
    return folder


def test_last_is_the_newest_that_was_interrupted(tmp_path: Path) -> None:
    new = tmp_path / "new"
    with pytest.raises(CheckpointError, match=r"no interrupted run in .*Name a checkpoint, ckpt_path=RUN/checkpoints"):
        run_to_resume(new, siblings=True)
    older, newer = begun(tmp_path / "b", 10), begun(tmp_path / "a", 20)
    begun(tmp_path / "c", 30, ended=True)
    with held(begun(tmp_path / "d", 40)):
        assert run_to_resume(new, siblings=True) == newer
        assert run_to_resume(new, siblings=True, alike=lambda folder: folder == older) == older
        assert run_to_resume(new, siblings=True, alike=lambda _: False) == newer
    assert run_to_resume(older, siblings=True) == older
    assert run_to_resume(new, siblings=False) == new


DEADLY = """
import os, sys, time, torch
from pathlib import Path
import pytorch_lightning as pl
from torch import nn
from torch.utils.data import get_worker_info
from qat.data.base import ImageData, Splits
from qat.data.images import ImageBatches
from qat.data.normalization import Normalization
from qat.errors import DataError
from qat.training import Classifier, QuantizationAwareTraining
from qat.training.workers import explained_workers

def read(rows):
    if 9 in rows and get_worker_info() is not None:
        time.sleep(1)  # the batches before it are out of its hands
        os._exit(1)  # as when the system is short of memory
    return torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)

class Deadly(ImageData):
    def load(self):
        labels, usual = torch.arange(16) % 2, Normalization.of(None, None)
        train = ImageBatches(read, labels, normalization=usual)
        return Splits(train=train, calibration=train, val=ImageBatches(read, labels[:4], normalization=usual),
                      class_names=("a", "b"), input_shape=(3, 8, 8))

net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
module = Classifier(net, num_classes=2, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
callback = QuantizationAwareTraining(calibration_batches=1)
callback.prepare(module, torch.zeros(2, 3, 8, 8))
callback.calibrate(module, [(torch.zeros(2, 3, 8, 8), torch.zeros(2).long())])
trainer = pl.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[callback],
                     enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1])
try:
    with explained_workers():
        trainer.fit(module, datamodule=Deadly(batch_size=4, num_workers=1))
except DataError as error:
    print(error)
"""


def test_a_worker_that_dies(tmp_path: Path) -> None:
    """In training. In a process of its own: torch tells by a signal handler, which would stay."""
    command = [sys.executable, "-c", DEADLY, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert re.search(r"DataLoader worker .* exited unexpectedly.* lower data\.num_workers \(0 reads", found.stdout), (
        found
    )


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_sends(error: Exception) -> None:
    with pytest.raises(DataError, match=r"closed its connection .* lower data\.num_workers"), explained_workers():
        raise error


def test_other_errors_pass_the_workers() -> None:
    with pytest.raises(RuntimeError, match="something else"), explained_workers():
        raise RuntimeError("something else")
