"""Checkpoints that a Trainer is asked to resume from: refused, damaged, or of other shapes, types, formats."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn

import qat
from qat.checkpoint import load_prepared
from qat.errors import CheckpointError
from qat.provenance import FORMAT, KEY, provenance
from qat.training import CarefulCheckpointIO, require_training_state

WEIGHTS = {"layer.weight": torch.ones(2, 32), "layer.bias": torch.zeros(2)}


class Canary:
    """Pickled, it asks to write a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, plugins=[CarefulCheckpointIO()], **options,
    )  # fmt: skip


def resume(content: Any, folder: Path) -> None:
    torch.save(content, folder / "stranger.ckpt")
    trainer(folder, enable_checkpointing=False).fit(BoringModel(), ckpt_path=folder / "stranger.ckpt")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"stranger\.ckpt is refused, and nothing in it was run: .*mkdir"):
        resume({"state_dict": WEIGHTS, "hyper_parameters": Canary(tmp_path / "canary")}, tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_a_trainers_own_checkpoint_comes_back(tmp_path: Path) -> None:
    """Written, read, and cut short: whole or a message."""
    wrote = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
    wrote.fit(BoringModel())
    wrote.save_checkpoint(tmp_path / "own.ckpt")
    require_training_state(tmp_path / "own.ckpt")
    content = (tmp_path / "own.ckpt").read_bytes()
    for end in range(0, len(content), 997):
        (tmp_path / "cut.ckpt").write_bytes(content[:end])
        with pytest.raises(CheckpointError, match=r"cut\.ckpt is truncated or not a checkpoint"):
            require_training_state(tmp_path / "cut.ckpt")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (
            {"format": FORMAT + 1},
            rf"newer format, {FORMAT + 1}; this qat reads formats up to {FORMAT}: install a newer",
        ),
        ({"format": "two"}, "has the format 'two', which no version"),
        ([FORMAT], "is of type list, not a mapping"),
        ({"format": FORMAT, "recipe": "w8a8"}, "names no target"),
        ({"format": FORMAT, "recipe": "w8a8", "target": "torch", "settings": 3}, "has settings of type int"),
    ],
)
def test_an_entry_that_means_nothing_here(tmp_path: Path, about: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"cannot be resumed here: .*{message}"):
        resume({"state_dict": WEIGHTS, KEY: about}, tmp_path)


@pytest.mark.parametrize("content", [WEIGHTS, {"state_dict": 3}, [1, 2]])
def test_none_of_a_trainers(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"is none of a Trainer's: it has no state_dict\. To start from weights"):
        resume(content, tmp_path)


def test_weights_alone_cannot_be_resumed(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "weights.ckpt")
    with pytest.raises(CheckpointError, match=r"no state of training \(epoch, global_step, .*cannot be resumed"):
        require_training_state(tmp_path / "weights.ckpt")


def test_a_zip_that_inflates(tmp_path: Path) -> None:
    """1 GB of zeros in 1 MB."""
    with (
        zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("bomb/data.pkl", "w", force_zip64=True) as entry,
    ):
        for _ in range(1024):
            entry.write(bytes(1 << 20))
    with pytest.raises(CheckpointError, match=r"bomb\.ckpt is truncated or not a checkpoint"):
        CarefulCheckpointIO().load_checkpoint(tmp_path / "bomb.ckpt")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda w: w[:1], "of another shape: .*fc.weight"),
        (lambda w: w.to(torch.complex64), "fc.weight"),
        (lambda w: w.bool(), "fc.weight"),
    ],
)
def test_tensors_of_another_shape_or_type(small_net: nn.Module, images: torch.Tensor, tmp_path: Path, wrong, message):
    prepared = qat.prepare(small_net, (images[:2],))
    before = {k: v.clone() for k, v in prepared.state_dict().items()}
    state = {k: wrong(v) if k == "fc.weight" else v for k, v in prepared.state_dict().items()}
    torch.save({"state_dict": state, KEY: provenance(prepared.recipe, prepared.target)}, tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=message):
        load_prepared(prepared, tmp_path / "odd.ckpt")
    assert all(torch.equal(before[k], v) for k, v in prepared.state_dict().items())
