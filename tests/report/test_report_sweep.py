"""The page of a sweep: fronts, failed jobs with their message, every command."""

from __future__ import annotations

import json
import re

import pytest

from qat.report.__main__ import main
from qat.report.jobs import is_sweep, read_sweep


def write_job(folder, i: int, top1: float, kilobytes: float, recipe: str = "w8a8") -> None:
    job = folder / str(i)
    (job / ".hydra").mkdir(parents=True)
    (job / ".hydra" / "overrides.yaml").write_text(json.dumps([f"seed={i}", "model=resnet20"]))
    results = {
        "model": "Net", "recipe": recipe, "target": "onnxruntime", "seed": i, "examples": 500,
        "top1": dict.fromkeys(("float", "ptq", "qat", "int8"), top1), "agreement": 99.0, "int8_mac_share": 1.0,
        "size_bytes": {"int8": kilobytes * 1000}, "latency_ms": {"int8": 1.0}, "passed": True, "failures": [],
        "departure": "", "parity": [], "cpu": {"name": "A CPU", "isa": [], "threads": 1}, "versions": {},
    }  # fmt: skip
    (job / "results.json").write_text(json.dumps(results))


def specs_of(html: str) -> list[str]:
    return re.findall(r'class="spec">(.*?)</script>', html, flags=re.DOTALL)


@pytest.fixture
def sweep(tmp_path):
    for i, (top1, kilobytes) in enumerate([(90.0, 10), (95.0, 20), (80.0, 30)]):
        write_job(tmp_path, i, top1, kilobytes)
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
    assert "On the front of int8 top-1 against file, kB: job 1, 0." in (sweep / "report.md").read_text()
    assert "`python train.py seed=1 model=resnet20`" in (sweep / "report.md").read_text()
    html = (sweep / "report.html").read_text()
    assert "python train.py seed=1 model=resnet20" in html
    assert len(html) < 5_000_000


def test_a_job_of_another_version_is_listed_with_the_failed_ones(sweep):
    (sweep / "0" / "results.json").write_text(json.dumps({"recipe": "w8a8"}))
    (job,) = (job for job in read_sweep(sweep).failed if job.name == "0")
    assert job.error.startswith("ReportError: results.json is of another version: it has no model, target, top1")


def test_a_job_that_evaluated_a_float_model_is_listed_with_them(sweep):
    results = json.loads((sweep / "0" / "results.json").read_text())
    alone = {**results, "task": "evaluate", "top1": {"float": 91.5}, "size_bytes": {}, "latency_ms": {}}
    (sweep / "0" / "results.json").write_text(json.dumps(alone))
    assert main([str(sweep)]) == 0
    for name in ("report.html", "report.md"):
        assert "no int8: task=evaluate, float top-1 91.50 %" in (sweep / name).read_text()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "Infinity"])
def test_a_swept_value_that_is_no_number_stays_text(sweep, value):
    for i, given in enumerate(("0.5", value)):
        (sweep / str(i) / ".hydra" / "overrides.yaml").write_text(f"- x={given}\n")
    found = {row["job"]: row["set x"] for row in read_sweep(sweep).rows()}
    assert (found["0"], found["1"]) == (0.5, value)
    assert main([str(sweep)]) == 0
    for spec in specs_of((sweep / "report.html").read_text()):
        json.loads(spec, parse_constant=pytest.fail)  # NaN is no JSON, and a browser refuses the page's


def test_a_sweep_without_results_is_a_page_all_the_same(sweep):
    for i in range(3):
        (sweep / str(i) / "results.json").unlink()
    assert main([str(sweep)]) == 0
    assert "0 jobs with an int8 file" in (sweep / "report.html").read_text()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_500_jobs(tmp_path, opened, width, scheme):
    for i in range(500):
        write_job(tmp_path, i, 80 + (i * 37 % 100) / 10, 100 + i * 61 % 997, "w8a8" if i % 2 else "w4a8")
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
    with opened(tmp_path / "report.html", width, scheme) as page:
        assert page.locator(".chart svg").count() == 3
        front = page.locator(".chart").first
        front.locator(".role-legend-label text", has_text="w4a8").click()
        front.locator("path[opacity='0.08']").first.wait_for(state="attached")
        page.get_by_role("button", name="file, kB").click()
        first = page.locator("table.sorted tbody tr").first.locator("td").nth(-4).inner_text()
        page.get_by_role("searchbox").fill("seed=17 ")
        visible = page.locator("table.sorted tbody tr:visible").count()
    assert first == "100"
    assert visible == 1
