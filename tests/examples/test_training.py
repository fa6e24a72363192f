"""The programs that train, as a user runs them: each ends in a file that behaves like the network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits

EXAMPLES = Path(__file__).parents[2] / "examples"
GOOD = 0.9  # top-1 over all digits; both programs reach 0.96 and more

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize("name", ["lightning_callback", "plain_loop"])
def test_trains_and_delivers(name: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"% top-1, .* % agree: onnxruntime .*, optimizations on", ran.stdout), ran.stdout
    session = onnxruntime.InferenceSession(tmp_path / "digits.onnx", providers=["CPUExecutionProvider"])
    ink, digits = load_digits(return_X_y=True)
    images = (ink.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    assert (logits.argmax(1) == digits).mean() > GOOD
