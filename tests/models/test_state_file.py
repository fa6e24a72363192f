from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qat.errors import CheckpointError
from qat.models.state_file import listing, read_state

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([1.0, -1.0])}


class Canary:
    """Unpickled, it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@dataclass
class Settings:
    lr: float = 0.1


def assert_reads(path, kind):
    state = read_state(path)
    assert state.kind == kind
    assert state.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(state.tensors) == set(STATE)
    for key, value in STATE.items():
        assert torch.equal(state.tensors[key], value)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (STATE, "plain state dict"),
        (OrderedDict(STATE), "plain state dict"),
        ({"state_dict": STATE, "best_prec1": 91.73}, "dict with state_dict"),
        ({"model_state_dict": STATE, "epoch": 3, "optimizer": {"lr": 0.1}}, "dict with model_state_dict"),
        ({"model": STATE, "args": argparse.Namespace(lr=0.1)}, "dict with model"),
        ({"state_dict": STATE, "pytorch-lightning_version": "2.6.0", "epoch": 1}, "Lightning checkpoint"),
    ],
)
@pytest.mark.parametrize("as_zip", [True, False])
def test_forms(tmp_path, content, kind, as_zip):
    path = tmp_path / "x.th"
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    assert_reads(path, kind)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_safetensors_by_suffix_or_content(tmp_path, name):
    save_file(STATE, tmp_path / name)
    assert_reads(tmp_path / name, "safetensors")


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    torch.save(STATE, tmp_path / "x.th")
    assert read_state("~/x.th").path == tmp_path / "x.th"


def test_missing_names_the_nearest(tmp_path):
    torch.save(STATE, tmp_path / "resnet20.th")
    with pytest.raises(CheckpointError, match=r"resnet_20\.th does not exist in .*Did you mean resnet20\.th\?"):
        read_state(tmp_path / "resnet_20.th")
    with pytest.raises(CheckpointError, match=r"zzz does not exist in .*Checkpoints there: resnet20\.th"):
        read_state(tmp_path / "zzz")


def test_missing_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"x\.th does not exist, nor does its folder .*nowhere"):
        read_state(tmp_path / "nowhere" / "x.th")


def test_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder; name a file\. In it: none"):
        read_state(tmp_path)
    torch.save(STATE, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"is a folder; name a file\. In it: a\.ckpt"):
        read_state(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated(tmp_path, form, share):
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.th")
    state = {f"layer{i}.weight": torch.randn(8, 8) for i in range(8)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CheckpointError, match=r"is truncated or not a checkpoint \([\d,]+ bytes; .*Copy it again"):
        read_state(path)


@pytest.mark.parametrize(
    "content", [b"hello world, this is text", b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}", b"\n" * 99]
)
@pytest.mark.parametrize("name", ["x.th", "x.safetensors"])
def test_not_a_checkpoint(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is truncated or not a checkpoint"):
        read_state(tmp_path / name)


def test_another_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.th", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(CheckpointError, match=r"is truncated or not a checkpoint"):
        read_state(tmp_path / "x.th")


def test_damaged_inside(tmp_path):
    path = tmp_path / "x.th"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    content[content.index(b"\x80\x02") + 5] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is truncated or not a checkpoint"):
        read_state(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, protocol):
    canary, path = tmp_path / "canary", tmp_path / "x.th"
    path.write_bytes(pickle.dumps({"state_dict": STATE, "x": Canary(canary)}, protocol=protocol))
    # protocol 0 has no mark by which to know a pickle
    message = "is truncated or not a checkpoint" if protocol == 0 else "refused, and nothing in it was run: .*trust the"
    with pytest.raises(CheckpointError, match=message):
        read_state(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary), protocol=protocol))
    assert canary.exists()  # the canary does sing where it is let


@pytest.mark.parametrize("as_zip", [True, False])
def test_code_inside_torch_save_is_refused_by_name(tmp_path, as_zip):
    canary, path = tmp_path / "canary", tmp_path / "x.th"
    torch.save({"state_dict": STATE, "x": Canary(canary)}, path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"nothing in it was run: it asks for (posix|nt)\.mkdir to be loaded"):
        read_state(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "name"),
    [(torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"), ({"s": Settings()}, "Settings")],
)
def test_pickled_objects_are_refused_by_name(tmp_path, content, name):
    torch.save(content, tmp_path / "x.th")
    with pytest.raises(CheckpointError, match=rf"is refused.*asks for \S*{name} to be loaded"):
        read_state(tmp_path / "x.th")


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")  # the archive form is what is tested
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"is a TorchScript archive, not a state dict\. Save the weights alone"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], r"holds a list, not a state dict"),
        (torch.zeros(1), r"holds a Tensor, not a state dict"),
        ({}, r"holds an empty state dict"),
        ({"state_dict": {}}, r"holds an empty state dict"),
        ({"state_dict": {"a": torch.zeros(1), "b": 3}}, r"holds no state dict.*'b' is of type int"),
        (
            {"epoch": 3, "weights": STATE},
            r"'epoch' is of type int, 'weights' is of type dict.*as a dict with `state_dict`",
        ),
        ({f"k{i}": i for i in range(20)}, r"'k7' is of type int and 12 more"),
        ({0: torch.zeros(1)}, r"0 is of type int, not a name"),
        ({"a": torch.zeros(2, 2).to_sparse()}, r"'a' is a tensor of layout torch\.sparse_coo"),
        ({"a": torch.zeros(2, device="meta")}, r"'a' is a tensor without data"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, message):
    torch.save(content, tmp_path / "x.th")
    with pytest.raises(CheckpointError, match=message):
        read_state(tmp_path / "x.th")


def test_unreadable(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    torch.save(STATE, tmp_path / "x.th")
    monkeypatch.setattr(Path, "open", refuse)  # not chmod: root reads every file
    with pytest.raises(CheckpointError, match=r"cannot read checkpoint .*x\.th: Permission denied"):
        read_state(tmp_path / "x.th")


def test_listing():
    assert listing("ab") == "a, b"
    assert listing("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert listing("abcdefghij") == "a, b, c, d, e, f, g, h and 2 more"
