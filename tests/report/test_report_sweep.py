"""The page of a sweep: fronts, failed jobs with their message, every command."""

from __future__ import annotations

import json

import pytest

from qat.report.__main__ import main
from qat.report.jobs import is_sweep, read_sweep


@pytest.fixture
def sweep(tmp_path):
    for i, (top1, kilobytes) in enumerate([(90.0, 10), (95.0, 20), (80.0, 30)]):
        job = tmp_path / str(i)
        (job / ".hydra").mkdir(parents=True)
        (job / ".hydra" / "overrides.yaml").write_text(json.dumps([f"seed={i}", "model=resnet20"]))
        results = {
            "recipe": "w8a8", "top1": dict.fromkeys(("float", "ptq", "qat", "int8"), top1), "agreement": 99.0,
            "size_bytes": {"int8": kilobytes * 1000}, "latency_ms": {"int8": 1.0}, "passed": True,
        }  # fmt: skip
        (job / "results.json").write_text(json.dumps(results))
    (tmp_path / "3" / ".hydra").mkdir(parents=True)
    (tmp_path / "3" / ".hydra" / "overrides.yaml").write_text("[seed=3, model=resnet20]")
    (tmp_path / "3" / "error.txt").write_text("NumericsError: the loss is nan")
    return tmp_path


def test_fronts_and_settings_that_vary(sweep):
    assert is_sweep(sweep)
    found = read_sweep(sweep)
    assert found.varied == ["seed"]
    assert {row["job"]: row["kB front"] for row in found.rows()} == {"0": True, "1": True, "2": False}
    assert {row["job"]: row["ms front"] for row in found.rows()} == {"0": False, "1": True, "2": False}


def test_the_page_names_failed_jobs_and_commands(sweep):
    assert main([str(sweep)]) == 0
    for name in ("report.html", "report.md"):
        assert "NumericsError: the loss is nan" in (sweep / name).read_text()
    html = (sweep / "report.html").read_text()
    assert "python train.py seed=1 model=resnet20" in html
    assert len(html) < 5_000_000
