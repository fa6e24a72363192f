"""A sweep as a user runs it: failures are listed, searches go on in their folder, one table and one plot at the end."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from qat.errors import ConfigError
from qat.models import resnet20
from qat.report.jobs import job_folders, read_sweep
from qat.report.objective import objectives, read_failure, require_objectives, write_failure
from qat.report.pareto import front, pareto_plot
from qat.report.sweep import sweep_table

ROOT = Path(__file__).parents[2]
RESULTS = {
    "model": "MobileNetV2", "recipe": "w8a8", "target": "onnxruntime", "seed": 0, "examples": 360,
    "top1": {"float": 98.1, "ptq": 97.5, "qat": 98.0, "int8": 98.33}, "agreement": 99.7, "int8_mac_share": 1.0,
    "passed": True, "failures": [], "departure": "", "parity": [], "versions": {},
    "size_bytes": {"float": 8_900_000, "int8": 2_400_000}, "latency_ms": {"float": 1.5, "int8": 0.75},
    "cpu": {"name": "A CPU", "isa": [], "threads": 1},
}  # fmt: skip
FLOAT = {
    **RESULTS, "task": "evaluate", "top1": {"float": 98.1}, "agreement": 100.0, "int8_mac_share": None,
    "size_bytes": {"float": 8_900_000}, "latency_ms": {"float": 1.5},
}  # fmt: skip


def job(
    folder: Path, name: str, *overrides: str, results: dict | None = None, failure: Exception | None = None
) -> None:
    (folder / name / ".hydra").mkdir(parents=True)
    (folder / name / ".hydra" / "overrides.yaml").write_text("".join(f"- {o}\n" for o in overrides))
    if results:
        (folder / name / "results.json").write_text(json.dumps(results))
    if failure:
        write_failure(folder / name, failure)


def text_of(renderable) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_the_table_lists_failures_with_their_message(tmp_path):
    job(tmp_path, "0", "quant=w8a8", results=RESULTS)
    job(tmp_path, "1", "quant=w4a4_lsq", failure=ConfigError("need [this], got that"))
    job(tmp_path, "2", "quant=w4a8")
    (tmp_path / "other").mkdir()  # not a job
    text = text_of(sweep_table(tmp_path))
    assert "98.33" in text
    assert "job 1: ConfigError: need [this], got that" in text
    assert text.count("no results") == 1
    assert [p.name for p in job_folders(tmp_path)] == ["0", "1", "2"]
    assert read_failure(tmp_path / "0") == ""


def test_the_table_lists_jobs_without_int8_damaged_ones_and_those_of_another_version(tmp_path):
    job(tmp_path, "0", "task=evaluate", results=FLOAT)
    job(tmp_path, "1", "seed=1", results={"recipe": "w8a8"})
    job(tmp_path, "2", "seed=2")
    (tmp_path / "2" / "results.json").write_text("{")
    text = " ".join(text_of(sweep_table(tmp_path)).split())
    assert "no int8" in text
    assert "job 0: no int8: task=evaluate, float top-1 98.10 %" in text
    assert "job 1: ReportError: results.json is of another version: it has no model, target, top1" in text
    assert "job 2: ReportError:" in text
    assert "results.json is damaged" in text


def test_the_table_shows_intervals(tmp_path):
    job(tmp_path, "0", "quant=w8a8", results=RESULTS)
    assert "96.4 \N{EN DASH} 99.2" in text_of(sweep_table(tmp_path))  # 98.33 % of 360


def test_objectives_are_numbers_of_the_artefact():
    assert objectives(RESULTS, require_objectives("top1")) == 98.33
    assert objectives(RESULTS, require_objectives(["agreement", "size", "latency"])) == (99.7, 2_400_000.0, 0.75)


@pytest.mark.parametrize("names", ["top1", "agreement", "size", "latency", ["latency", "top1"]])
def test_an_evaluated_float_model_has_no_objective(names):
    assert objectives(FLOAT, require_objectives(names)) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("latncy", r"unknown objective 'latncy'. Did you mean latency"),
        ([], r"need one objective or several different ones, got \[\]"),
        (["top1", "top1"], r"several different ones, got \['top1', 'top1'\]"),
    ],
)
def test_objectives_that_are_none(names, message):
    with pytest.raises(ConfigError, match=message):
        require_objectives(names)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1))
def test_the_front_is_what_nothing_beats(points):
    on = front(points)
    kept = sorted({p for p, keep in zip(points, on, strict=True) if keep})
    assert all(a[1] < b[1] for a, b in pairwise(kept))  # more cost, more gain
    assert all(any(c <= p[0] and g >= p[1] for c, g in kept) for p in points)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:altair.*")
def test_the_plot_shows_every_job(tmp_path):
    pytest.importorskip("vl_convert", reason="the extra `sweep` is not installed")
    job(tmp_path, "0", "quant=w8a8", results=RESULTS)
    job(tmp_path, "1", "quant=w4a8", results={**RESULTS, "recipe": "w4a8"})
    path = pareto_plot(read_sweep(tmp_path).rows(), tmp_path / "pareto.svg")
    svg = path.read_text()
    assert all(word in svg for word in ("w8a8", "w4a8", "int8 top-1, %", "latency, ms", "file, kB"))


APP = """
from pathlib import Path
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    folder = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
    (folder / "results.json").write_text(cfg.results)

main()
"""


def test_a_sweep_says_how_far_it_is(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    hydra = {"callbacks": {"summary": {"_target_": "qat.report.sweep.SweepSummary"}}, "sweep": {"dir": "jobs"}}
    app = {"a": 1, "b": 2, "results": json.dumps(RESULTS), "hydra": hydra}
    (tmp_path / "app.yaml").write_text(json.dumps(app))
    command = [sys.executable, "app.py", "-m", "a=1,2", "b=3,4"]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert process.returncode == 0, process.stderr
    said = [line for line in process.stdout.splitlines() if "jobs done" in line]
    assert [line.split(",")[0] for line in said] == ["1 of 4 jobs done", "2 of 4 jobs done", "3 of 4 jobs done"]
    assert all(line.endswith(" left") for line in said)
    assert "report: jobs/report.html" in process.stdout
    page = (tmp_path / "jobs" / "report.md").read_text()
    assert [f"a={a} b={b}" in page for a in (1, 2) for b in (3, 4)] == [True] * 4
    assert (tmp_path / "jobs" / "report.html").is_file()


def sweep(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    process = started(tmp_path, *overrides)
    out, err = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def started(tmp_path: Path, *overrides: str) -> subprocess.Popen[str]:
    if not (tmp_path / "float.pt").is_file():
        torch.save(resnet20().state_dict(), tmp_path / "float.pt")
    command = [sys.executable, str(ROOT / "train.py"), "-m", "model=resnet20", f"init_from={tmp_path}/float.pt",
               "qat.epochs=0", "qat.calibration_batches=1", "latency.repeats=3", "verify.agreement=0",
               "verify.top1=100",
               "trainer.enable_progress_bar=false", f"cache_dir={tmp_path}/cache", f"hydra.sweep.dir={tmp_path}/sweep",
               *overrides]  # fmt: skip
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=alone)


@pytest.mark.slow
@pytest.mark.runtime
def test_a_failed_job_does_not_end_a_sweep(tmp_path):
    process = sweep(tmp_path, "quant=w8a8", "qat.freeze_observers_at=0.9,0.5", "qat.freeze_bn_at=0.6")
    assert process.returncode == 0, process.stderr
    assert "job 0: ConfigError: need 0 <= freeze_observers_at" in " ".join(process.stdout.split())
    assert (tmp_path / "sweep" / "1" / "results.json").is_file()
    assert (tmp_path / "sweep" / "pareto.svg").is_file()


@pytest.mark.slow
@pytest.mark.runtime
def test_a_search_goes_on_in_its_folder(tmp_path):
    if find_spec("optuna") is None:
        pytest.skip("the extra `sweep` is not installed")
    if version("sqlalchemy") >= "2":
        pytest.skip("optuna 2 stores nothing with SQLAlchemy 2; the extra `sweep` has 1.4")
    search = ("hparams_search=optuna", "qat.optimizer.lr=0.01", "quant=choice(w8a8,w8a8_symmetric)")
    first = sweep(tmp_path, *search, "hydra.sweeper.n_trials=1")
    assert first.returncode == 0, first.stderr
    second = sweep(tmp_path, *search, "hydra.sweeper.n_trials=2")
    assert second.returncode == 0, second.stderr
    assert [p.name for p in job_folders(tmp_path / "sweep")] == ["0", "1"]
    assert "instead of creating a new one" in second.stderr + second.stdout


def require_search() -> None:
    if find_spec("optuna") is None or version("sqlalchemy") >= "2":
        pytest.skip("the extra `sweep` is not installed, or SQLAlchemy is 2, with which optuna 2 stores nothing")


SEARCH = ("hparams_search=optuna", "qat.optimizer.lr=0.01", "quant=w8a8", "qat.freeze_bn_at=0.6")


@pytest.mark.slow
@pytest.mark.runtime
def test_a_failed_trial_does_not_end_a_search(tmp_path):
    require_search()
    failing = "qat.freeze_observers_at=choice(0.5,0.9)"
    process = sweep(tmp_path, *SEARCH, failing, "hydra.sweeper.n_trials=3", "seed=0")  # draws both
    assert process.returncode == 0, process.stderr
    said = " ".join(process.stdout.split())
    assert "ConfigError: need 0 <= freeze_observers_at" in said
    assert sum((tmp_path / "sweep" / str(n) / "results.json").is_file() for n in range(3)) in (1, 2)


@pytest.mark.slow
@pytest.mark.runtime
def test_a_search_of_which_every_trial_fails_ends_in_its_table(tmp_path):
    """For one objective Optuna has no best trial then, and raises."""
    require_search()
    process = sweep(tmp_path, *SEARCH, "qat.freeze_observers_at=choice(0.8,0.9)", "hydra.sweeper.n_trials=2",
                    "objective=top1", "hydra.sweeper.direction=maximize")  # fmt: skip
    assert process.returncode == 1
    said = " ".join(process.stdout.split())
    assert all(f"job {number}: ConfigError: need 0 <= freeze_observers_at" in said for number in (0, 1))


@pytest.mark.slow
@pytest.mark.runtime
def test_a_search_that_is_killed_goes_on(tmp_path):
    require_search()
    trials = ("qat.freeze_observers_at=choice(0.3,0.5)", "hydra.sweeper.n_trials=3")
    process = started(tmp_path, *SEARCH, *trials)
    while not (tmp_path / "sweep" / "0" / "results.json").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    second = sweep(tmp_path, *SEARCH, *trials)
    assert second.returncode == 0, second.stderr
    ended = [job for job in job_folders(tmp_path / "sweep") if (job / "results.json").is_file()]
    assert len(ended) == 3
    assert "no results" not in second.stdout or len(job_folders(tmp_path / "sweep")) == 4


@pytest.mark.slow
@pytest.mark.runtime
def test_the_float_baseline_of_a_sweep_is_trained_once(tmp_path):
    short = ("init_from=null", "float.epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")
    process = sweep(tmp_path, *short, "quant=w8a8,w8a8_symmetric")
    assert process.returncode == 0, process.stderr
    said = process.stdout + process.stderr
    assert (said.count("float baseline kept at"), said.count("float baseline from the cache")) == (1, 1)


@pytest.mark.slow
@pytest.mark.runtime
def test_a_sweep_of_which_nothing_came_fails(tmp_path):
    process = sweep(tmp_path, "quant=w8a8", "qat.freeze_observers_at=0.9,0.8", "qat.freeze_bn_at=0.6")
    assert process.returncode == 1, process.stdout
    said = " ".join(process.stdout.split())
    assert all(f"job {number}: ConfigError: need 0 <= freeze_observers_at" in said for number in (0, 1))
    assert "Traceback" not in process.stderr


@pytest.mark.slow
@pytest.mark.runtime
def test_a_grid_goes_on_in_its_folder_and_jobs_run_side_by_side(tmp_path):
    if find_spec("joblib") is None or find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("the extra `sweep` is not installed")
    grid = ("quant=w8a8,w8a8_symmetric", "hydra/launcher=parallel")
    first = sweep(tmp_path, *grid)
    assert first.returncode == 0, first.stderr
    results = [tmp_path / "sweep" / str(number) / "results.json" for number in (0, 1)]
    before = [path.read_bytes() for path in results]
    results[1].unlink()  # as if it had been interrupted there
    second = sweep(tmp_path, *grid, "hydra/launcher=basic")
    assert second.returncode == 0, second.stderr
    assert "sweep/0 ended before, and is not run again" in second.stdout + second.stderr
    assert results[0].read_bytes() == before[0]  # times and all
    assert json.loads(results[1].read_text())["sha256"] == json.loads(before[1])["sha256"]
