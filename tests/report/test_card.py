from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from qat.errors import ReportError
from qat.report.card import card
from qat.report.results import read_results
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
                 "100.00 % of multiply", "seed 0", "A CPU (avx2)", "torch 2.15.0", "7 bits", "passed", "n = 360",
                 "96.4 \N{EN DASH} 99.2", "98.4 \N{EN DASH} 100.0", "float 60.0, total 150.0"):  # fmt: skip
        assert part in text


def test_card_shows_what_the_runtime_executes_and_the_size_of_a_timed_batch():
    coverage = {"runtime": "onnxruntime 1", "integer": 41, "in_float": ["Resize up1", "Softmax s"],
                "islands": ["Resize up1"], "delegates": None}  # fmt: skip
    text = text_of(card({**RESULTS, "coverage": coverage, "latency_batch_size": 8}))
    assert "onnxruntime 1: 41 operators on integers, 2 in float, 1 of them an island: Resize up1" in text
    assert "latency, ms, batch of 8" in text


def test_card_of_a_float_model_alone():
    alone = {**RESULTS, "task": "evaluate", "top1": {"float": 98.1}, "size_bytes": {"float": 8_900_000},
             "latency_ms": {"float": 1.5}, "int8_mac_share": None}  # fmt: skip
    text = text_of(card(alone))
    assert "8,900" in text
    assert "multiply" not in text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"examples": 0}, "another version: examples is 0, need 1 or more; run again for its numbers"),
        ({"top1": None}, "top1: null is no object"),
        ({"top1": {"int8": 101.0}}, r"top1\.int8 is 101\.0, need 0 to 100"),
        ({"top1": {"int8": float("nan")}}, r"top1\.int8 is nan, need 0 to 100"),
        ({"latency_ms": {"int8": 0.0}}, r"latency_ms\.int8 is 0\.0, need more than 0"),
        ({"agreement": None}, "agreement: null is no number"),
        ({"parity": [{"name": "float"}]}, r"it has no parity\.0\.agreement, parity\.0\.max_steps"),
        ({"cpu": {"name": "A CPU"}}, r"it has no cpu\.isa, cpu\.threads"),
        ({"passed": "yes"}, 'passed: "yes" is no bool'),
    ],
)
def test_results_of_another_form_are_one_message(wrong, message):
    with pytest.raises(ReportError, match=message):
        card({**RESULTS, **wrong})


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
