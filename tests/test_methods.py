"""The table of docs/methods.md: which runs it reads, what it marks, and what it keeps."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PAGE = "# Page\n\n<!-- methods: cifar10_resnet20 -->\n<!-- end methods: cifar10_resnet20 -->\n\nText.\n\n" + (
    "<!-- methods: digits -->\n<!-- end methods: digits -->\n"
)


@pytest.fixture(scope="module")
def methods() -> ModuleType:
    folder = ROOT / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("methods_benchmark", folder / "methods.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
    return module


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "methods.md"
    path.write_text(PAGE)
    return path


def left(folder: Path, name: str, int8: float, *settings: str, size: int = 100_000, **more: Any) -> None:
    """What a run of an experiment leaves."""
    (folder / ".hydra").mkdir(parents=True)
    overrides = [f"experiment={name}", "data.path=D", "seed=0", f"hydra.run.dir={folder}", *settings]
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    results = {
        "task": "qat", "passed": True, "top1": {"float": 91.73, "ptq": 80.0, "qat": int8 + 0.01, "int8": int8},
        "size_bytes": {"float": 400_000, "int8": size}, "latency_ms": {"float": 0.2, "int8": 0.1},
        "seconds": {"total": 61.4}, "cpu": {"name": "CPU", "isa": ["avx2"], "threads": 1},
        "versions": {"torch": "2", "onnxruntime": "1"}, **more,
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))


def lines(page: Path) -> list[str]:
    return [line for line in page.read_text().splitlines() if line.startswith("| ")]


def test_rows_of_seeds_and_of_what_needs_no_training(methods: ModuleType, page: Path, tmp_path: Path) -> None:
    for seed, value in enumerate((91.7, 91.8, 91.9)):
        left(tmp_path / "runs" / "any" / str(seed), "cifar10_resnet20_w4a8", value)
    left(tmp_path / "runs" / "x", "cifar10_resnet20_ptq", 91.69, task="ptq", passed=False)
    left(tmp_path / "runs" / "y", "digits_lstm_dynamic", 98.0, task="dynamic")
    methods.write(page, methods.finished(tmp_path / "runs"))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines(page)]
    command = "`experiment=cifar10_resnet20_{}`"
    assert cells[2] == [
        "ptq",
        "80.00",
        "",
        "91.69 (outside the gate)",
        "91.6",
        "1",
        "100",
        "61",
        command.format("ptq"),
        "",
    ]
    seeds = ["80.00 ± 0.00", "91.81 ± 0.10", "91.80 ± 0.10", "91.6", "3", "100", "61"]
    assert cells[3] == ["w4a8", *seeds, command.format("w4a8"), ""]
    size, ms = "100 (0.25)", "0.100 (0.200)"
    assert cells[-1] == ["lstm_dynamic", "91.73", "98.00", size, ms, "1", "61", "`experiment=digits_lstm_dynamic`", ""]
    assert page.read_text().count("CPU (avx2), 1 thread; torch 2, onnxruntime 1.") == 2


def test_what_falls_short_says_what_was_tried_and_notes_stay(methods: ModuleType, page: Path, tmp_path: Path) -> None:
    left(tmp_path / "runs" / "a", "cifar10_resnet20_w2a2_lsq", 89.0)
    left(tmp_path / "runs" / "b", "cifar10_resnet20_w2a2_lsq", 88.5, "qat.optimizer.lr=0.02")
    methods.write(page, methods.finished(tmp_path / "runs"))
    assert lines(page)[2].split(" | ")[3] == "**89.00**"
    assert lines(page)[2].endswith("| `qat.optimizer.lr=0.02` 88.50 |")
    page.write_text(page.read_text().replace("` 88.50 |", "` 88.50; more epochs are needed |"))
    left(tmp_path / "later" / "c", "cifar10_resnet20_w2a2_lsq", 89.5)
    methods.write(page, methods.finished(tmp_path / "later"))
    assert lines(page)[2].split(" | ")[3] == "**89.50**"
    assert lines(page)[2].endswith("| `qat.optimizer.lr=0.02` 88.50; more epochs are needed |")
    left(tmp_path / "last" / "d", "cifar10_resnet20_w2a2_lsq", 90.0)
    methods.write(page, methods.finished(tmp_path / "last"))
    assert lines(page)[2].split(" | ")[3] == "90.00"
    assert lines(page)[2].endswith("|  |")


def test_rows_that_no_run_replaces_stay(methods: ModuleType, page: Path, tmp_path: Path) -> None:
    left(tmp_path / "one" / "a", "cifar10_resnet20_w4a8", 91.7)
    methods.write(page, methods.finished(tmp_path / "one"))
    before = page.read_text()
    methods.write(page, methods.finished(tmp_path / "nothing"))
    assert page.read_text() == before
    left(tmp_path / "two" / "a", "cifar10_resnet20_ptq", 91.7)
    methods.write(page, methods.finished(tmp_path / "two"))
    assert [line.split(" | ")[0] for line in lines(page)[2:4]] == ["| ptq", "| w4a8"]


@pytest.mark.parametrize(
    ("mixed", "uniform", "sizes", "missed"),
    [(91.7, 91.7, (90, 90), False), (91.6, 91.7, (90, 90), True), (91.8, 91.7, (91, 90), True)],
)
def test_a_row_may_be_measured_by_another(
    methods: ModuleType, mixed: float, uniform: float, sizes: tuple[int, int], missed: bool
) -> None:
    pair = dict(zip(("m", "u"), sizes, strict=True))
    found = {
        "cifar10_resnet20_mixed5": methods.Found(runs=[{"top1": {"int8": mixed}, "size_bytes": {"int8": pair["m"]}}]),
        "cifar10_resnet20_w5a5": methods.Found(runs=[{"top1": {"int8": uniform}, "size_bytes": {"int8": pair["u"]}}]),
    }
    assert methods.short_of("cifar10_resnet20_mixed5", found) == ("91.70, `cifar10_resnet20_w5a5`", missed)


def test_the_page_has_its_blocks_and_every_row_its_experiment(methods: ModuleType) -> None:
    page = ROOT / "docs" / "methods.md"
    for family in methods.FAMILIES:
        assert methods.experiments(family)
        rows = methods.rows_of(page, f"methods: {family.rstrip('_')}")
        assert set(rows) <= {methods.short(name) for name in methods.experiments(family)}
        assert all(len(row) == len(methods.HEADERS[family]) for row in rows.values())
