"""Two processes that want the same float baseline at once: one trains it, the other loads the same, whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qat.training import cached_baseline

PROGRAM = """
import sys, time, torch
from pathlib import Path
from torch import nn
from qat.training.baseline import cached_baseline
folder, name = Path(sys.argv[1]), sys.argv[2]
model = nn.Linear(64, 64)
def train():
    (folder / f"trained-{name}").touch()
    time.sleep(1.0)  # the other one is at the door by then
    torch.manual_seed(5)
    nn.init.normal_(model.weight)
(folder / f"ready-{name}").touch()
while len(list(folder.glob("ready-*"))) < 2:
    time.sleep(0.01)
cached_baseline(model, {"seed": 0}, folder / "cache", "linear", train)
torch.save(model.state_dict(), folder / f"{name}.pt")
"""


def test_one_trains_and_both_have_it(tmp_path: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), name]) for name in ("a", "b")]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(list(tmp_path.glob("trained-*"))) == 1
    a, b = (torch.load(tmp_path / f"{name}.pt") for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)
    kept = sorted(p.suffix for p in (tmp_path / "cache").iterdir())
    assert kept.count(".safetensors") == kept.count(".json") == 1
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"\0" * 500),
        lambda path: save_file({"weight": torch.zeros(2, 2)}, path),
    ],
)
def test_a_damaged_file_of_the_cache_is_trained_again(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[int] = []

    def load() -> tuple[bool, nn.Module]:
        model = nn.Linear(4, 4)

        def train() -> None:
            trained.append(1)
            nn.init.constant_(model.weight, len(trained))

        return cached_baseline(model, {"seed": 0}, tmp_path, "linear", train), model

    load()
    (path,) = tmp_path.glob("*.safetensors")
    damage(path)
    (tmp_path / f".{path.stem}-abcd1234.safetensors").write_bytes(b"half")
    kept, model = load()
    assert (kept, len(trained), float(model.weight.detach()[0, 0])) == (False, 2, 2.0)
    assert f"float baseline {path} is damaged (" in caplog.text
    kept, model = load()
    assert (kept, len(trained), float(model.weight.detach()[0, 0])) == (True, 2, 2.0)
    assert not list(tmp_path.glob(".*"))


def test_a_tensor_with_two_names_is_kept(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.same = self.first

    model, other = Twice(), Twice()
    assert not cached_baseline(model, {"seed": 0}, tmp_path, "twice", lambda: None)
    assert cached_baseline(other, {"seed": 0}, tmp_path, "twice", lambda: None)
    assert torch.equal(other.same.weight, model.first.weight)
