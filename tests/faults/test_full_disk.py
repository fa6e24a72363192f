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
from qat.pipeline.lifecycle import conclude
from qat.report.jobs import Sweep
from qat.report.page import write_sweep
from qat.training import CarefulCheckpointIO

path = Path(sys.argv[1])
model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 10)).eval()
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    if path.suffix == ".ckpt":
        CarefulCheckpointIO().save_checkpoint({"state_dict": model.state_dict()}, path)
    elif path.name == "results.json":
        conclude({"notes": "full " * 100_000}, path.parent)
    elif path.name == "report.md":
        write_sweep(Sweep(name="full " * 100_000, jobs=()), path.parent)
    else:
        qat.export(model, path, (torch.zeros(2, 300),))
except ExportError as error:
    print(error)
"""


@pytest.mark.runtime
@pytest.mark.parametrize(
    "name",
    [
        "last.ckpt",
        "float.onnx",
        "report.md",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("results.json", "float.pt2")),
    ],
)
def test_the_previous_file_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("previous")
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / name), str(LIMIT)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert found.stdout.strip().endswith(
        f"cannot write {tmp_path / name}: File too large. Free some space or choose another folder; "
        "nothing was left half-written"
    ), found.stderr
    assert (tmp_path / name).read_text() == "previous"
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_the_metrics_of_a_training_that_runs(tmp_path: Path) -> None:
    """No file of ours: rows are added to it."""
    program = (
        "import resource\nfrom qat.errors import ExportError\nfrom qat.training.loggers import RunCSVLogger\n"
        f"logger = RunCSVLogger({str(tmp_path)!r}, name='qat', version='', flush_logs_every_n_steps=1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))\n"
        "try:\n    for step in range(10_000):\n        logger.log_metrics({'loss': 1 / 3}, step)\n"
        "except ExportError as error:\n    print(step, error)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    step, _, said = found.stdout.partition(" ")
    assert said.strip() == (
        f"cannot write {tmp_path}/qat/metrics.csv: File too large. Free some space, and go on with ckpt_path=last"
    ), found
    whole = (tmp_path / "qat" / "metrics.csv").read_text().splitlines()[: int(step) - 1]
    assert whole[0] == "loss,step"
    assert len(whole) > 100
