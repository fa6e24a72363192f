from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from qat.report.card import card, read_results
from qat.report.sweep import sweep_table

RESULTS = {
    "model": "MobileNetV2", "recipe": "w8a8", "target": "onnxruntime",
    "top1": {"float": 98.1, "ptq": 97.5, "qat": 98.06, "int8": 98.33},
    "agreement": 99.72, "examples": 360,
    "size_bytes": {"float": 8_900_000, "int8": 2_400_000},
    "latency_ms": {"float": 1.5, "int8": 0.75},
    "int8_mac_share": 1.0, "passed": True, "failures": [], "departure": "",
    "parity": [{"name": "fake-quant", "top1": 98.06, "agreement": 100.0, "max_steps": 0.0, "mean_steps": 0.0}],
    "notes": ["weights: 8 -> 7 bits, why"], "seed": 0, "seconds": {"float": 60.0, "total": 150.0},
    "cpu": {"name": "A CPU", "isa": ["avx2"], "vnni": False, "threads": 2}, "versions": {"torch": "2.15.0"},
}  # fmt: skip


def text_of(renderable) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_card_shows_accuracy_size_latency_and_circumstances():
    text = text_of(card(RESULTS))
    for part in ("98.10", "97.50", "98.06", "98.33", "8,900", "2,400", "0.27x", "0.50x", "360 validation images",
                 "100.00 % of multiply", "seed 0", "A CPU (avx2)", "torch 2.15.0", "7 bits", "passed"):  # fmt: skip
        assert part in text


def test_card_says_why_the_gate_failed():
    text = text_of(card({**RESULTS, "passed": False, "failures": ["runtime: agreement 96.40 %, need 99 %"]}))
    assert "failed: runtime: agreement 96.40 %, need 99 %" in text


@pytest.fixture
def sweep(tmp_path):
    for job, int8 in ((0, 97.0), (1, 98.5), (2, None)):
        (tmp_path / str(job) / ".hydra").mkdir(parents=True)
        (tmp_path / str(job) / ".hydra" / "overrides.yaml").write_text(f"- seed={job}\n")
        if int8:
            results = {**RESULTS, "top1": {**RESULTS["top1"], "int8": int8}}
            (tmp_path / str(job) / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_sweep_lists_every_job_best_first_and_the_failed_one_last(sweep):
    lines = [line for line in text_of(sweep_table(sweep)).splitlines() if "seed=" in line]
    assert [line.split("seed=")[1][0] for line in lines] == ["1", "0", "2"]
    assert "98.50" in lines[0]
    assert "no results" in lines[2]


def test_results_are_read_from_a_run_folder(sweep):
    assert read_results(sweep / "1")["top1"]["int8"] == 98.5
