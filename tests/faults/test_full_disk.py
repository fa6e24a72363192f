"""A disk that is really full: one message that names the file and the way out, and what was there before stays.

The limit is the system's own on the size of a file, set in a process of its own; writing fails as on a full disk.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 200_000  # bytes; both files are larger
PROGRAM = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
import pytorch_lightning as pl
import qat
from qat.errors import ExportError
from qat.training import CarefulCheckpointIO

path = Path(sys.argv[1])
model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    if path.suffix == ".ckpt":
        CarefulCheckpointIO().save_checkpoint({"state_dict": model.state_dict()}, path)
    else:
        qat.export(model, path, (torch.zeros(2, 300),))
except ExportError as error:
    print(error)
"""


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["last.ckpt", "float.onnx", pytest.param("float.pt2", marks=pytest.mark.slow)])
def test_the_previous_file_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("previous")
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / name), str(LIMIT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.stdout.strip().endswith(
        f"cannot write {tmp_path / name}: File too large. Free some space or choose another folder; "
        "nothing was left half-written"
    ), found.stderr
    assert (tmp_path / name).read_text() == "previous"
    assert [p.name for p in tmp_path.iterdir()] == [name]
