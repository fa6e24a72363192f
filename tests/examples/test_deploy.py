"""The programs of `examples/deploy` as a user runs them, in a process without this package's help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qat

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"


@pytest.mark.runtime
def test_python_program_classifies_with_the_stored_preprocessing(small_net, images, tmp_path):
    prepared = qat.prepare(small_net, images[:2])
    qat.calibrate(prepared, [images])
    about = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.25] * 3, "classes": ["ant", "bee", "cat", "dog", "eel"]}
    integer = qat.convert(prepared)
    artifact = qat.export(integer, tmp_path / "model.onnx", metadata={"preprocessing": json.dumps(about)})
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    command = [sys.executable, str(DEPLOY / "classify.py"), str(artifact.path), str(tmp_path / "picture.png")]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert process.returncode == 0, process.stderr
    x = (torch.from_numpy(pixels).float().permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    lines = [line.split("\t") for line in process.stdout.splitlines()]
    logits = dict(zip(about["classes"], integer(x)[0].tolist(), strict=True))
    assert {name: float(value) for name, value in lines} == pytest.approx(logits, abs=0.1)
