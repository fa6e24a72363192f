"""Two processes that want the same float baseline at once: one trains it, the other loads the same, whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

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
