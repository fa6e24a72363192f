"""A run for every target, from the float checkpoint to the card: what it delivers is run in its own runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from qat import machine
from qat.models import resnet20
from qat.pipeline import run
from qat.runtime import EXTRAS
from qat.target import Target

Config = Callable[..., DictConfig]
QUICK = ["task=ptq", "model=resnet20", "trainer.enable_progress_bar=false", "qat.calibration_batches=2",
         "latency.repeats=1", "report=false", "verify.agreement=50", "verify.top1=50"]  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.runtime,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.mark.parametrize("name", ["onnxruntime_vnni", "openvino", "executorch", "inductor", "tensorrt", "torch"])
def test_a_run_delivers_what_its_runtime_runs(config: Config, name: str, tmp_path: Path) -> None:
    target = Target.parse(name)
    if target.runtime in EXTRAS:
        pytest.importorskip(EXTRAS[target.runtime], reason=f"the extra `{target.runtime}` is not installed")
    torch.save(resnet20().state_dict(), tmp_path / "float.pt")
    results: dict[str, Any] = run(config(tmp_path / "run", f"target={name}", f"init_from={tmp_path / 'float.pt'}"))
    assert (tmp_path / "run" / f"int8{target.artifact}").is_file()
    assert results["target"] == name
    assert results["passed"]
    stages = json.loads((tmp_path / "run" / "results.json").read_text())["parity"]
    assert stages[-1]["name"].startswith(target.runtime)
    if not machine.saturation(name, machine.cpu()):  # a CPU without VNNI: 8-bit sums saturate in onnxruntime
        assert stages[-1]["mean_steps"] < 1.5
    assert set(results["latency_ms"]) == {"float", "int8"}
