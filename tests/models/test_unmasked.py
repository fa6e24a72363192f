"""Checkpoints of pruned models, into models without masks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import qat
from qat.checkpoint import load_prepared, save_prepared
from qat.errors import CheckpointError
from qat.models import load_float


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten())


@pytest.fixture
def cut() -> nn.Sequential:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[3], "weight", 0.5)
    prune.l1_unstructured(model[3], "bias", 1)
    return model


@pytest.mark.parametrize("prefix", ["", "module.", "model.net."])
def test_masks_are_multiplied_in(cut: nn.Sequential, tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + key: value for key, value in cut.state_dict().items()}, tmp_path / "cut.pt")
    model = net()
    report = load_float(model, tmp_path / "cut.pt")
    assert "loaded 8 of 8 tensors from cut.pt" in str(report)
    assert "3 masks of pruned weights applied" in str(report)
    assert torch.equal(model[0].weight, cut[0].weight_orig * cut[0].weight_mask)
    assert torch.equal(model[3].bias, cut[3].bias_orig * cut[3].bias_mask)
    assert torch.equal(model[1].weight, cut[1].weight)


def test_a_pruned_model_is_given_masks(cut: nn.Sequential, tmp_path: Path) -> None:
    torch.save(cut.state_dict(), tmp_path / "cut.pt")
    other = net()
    for at, name in ((0, "weight"), (3, "weight"), (3, "bias")):
        prune.identity(other[at], name)
    assert load_float(other, tmp_path / "cut.pt").masks == 0
    assert torch.equal(other[0].weight_mask, cut[0].weight_mask)
    assert torch.equal(other[0].weight_orig, cut[0].weight_orig)


def test_a_tensor_that_is_called_mask_is_none(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.Parameter(torch.ones(3))
            self.register_buffer("attn_mask", torch.zeros(3))

    torch.save(Masked().state_dict(), tmp_path / "masked.pt")
    model = Masked()
    assert load_float(model, tmp_path / "masked.pt").masks == 0
    assert torch.equal(model.attn, torch.ones(3))


def test_prepared_models_and_back(cut: nn.Sequential, tmp_path: Path) -> None:
    """With its masks into one that was prepared alike; into a float model; not into one without masks."""
    images = torch.rand(2, 3, 8, 8)
    prune.remove(cut[3], "bias")
    prepared = qat.prepare(cut, images)
    qat.calibrate(prepared, [images])
    save_prepared(prepared, tmp_path / "prepared.pt")
    again = qat.prepare(qat.keep_zeros(cut), images)
    load_prepared(again, tmp_path / "prepared.pt")
    assert torch.equal(again.get_submodule("0").weight_mask, cut[0].weight_mask)
    model = net()
    assert load_float(model, tmp_path / "prepared.pt").masks == 2
    assert torch.equal(model[0].weight, cut[0].weight_orig * cut[0].weight_mask)
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: '0.weight_mask', '3.weight_mask'"):
        load_prepared(qat.prepare(net(), images), tmp_path / "prepared.pt")
