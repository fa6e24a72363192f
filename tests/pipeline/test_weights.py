"""`task=dynamic` and `task=weight_only` through `train.py`'s own `run`: two tiny models, trained for an epoch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from qat.errors import ConfigError, PlacementError
from qat.pipeline import run
from qat.pipeline.weights import say_unused

Config = Callable[..., DictConfig]
QUICK = ["trainer.enable_progress_bar=false", "latency.repeats=1", "float.epochs=1", "report=false"]
TINY = {"transformer": ["model.width=16", "model.depth=1", "model.heads=2"], "lstm": ["model.hidden=16"]}

pytestmark = pytest.mark.runtime


@pytest.mark.parametrize(
    ("experiment", "model", "recipe"),
    [
        ("digits_transformer_dynamic", "transformer", "w8 dynamic"),
        ("digits_lstm_dynamic", "lstm", "w8 dynamic"),
        ("digits_transformer_weight_only", "transformer", "w4 weight-only"),
    ],
)
def test_the_demos_end_in_a_card(config: Config, experiment: str, model: str, recipe: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    results = run(config(folder, f"experiment={experiment}", *TINY[model], "report=true"))
    page = (folder / "report.html").read_text()
    assert all(part in page for part in ("The parity ladder", "Float and int8 disagree on", "Operators of the model"))
    assert results["passed"]
    assert results["agreement"] == 100.0
    assert results["recipe"] == recipe
    assert set(results["top1"]) == set(results["latency_ms"]) == set(results["size_bytes"]) == {"float", "int8"}
    assert (results["int8_mac_share"] is None) == ("only" in recipe)
    assert json.loads((folder / "results.json").read_text()) == results
    assert recipe in (folder / "plan.txt").read_text()
    again = run(config(tmp_path / "again", "task=evaluate", f"evaluate.artifact={folder}", "data.image_size=8"))
    assert again["top1"]["int8"] == results["top1"]["int8"]


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["task=dynamic", "target=executorch"], ConfigError, r"target executorch takes static int8 alone"),
        (["task=dynamic", "also=[torch]"], ConfigError, r"task=dynamic writes for one target, got onnxruntime, torch"),
        (["task=weight_only", "quant=w4a8", "target=torch"], ConfigError, r"weights of 4 bits are packed as INT4"),
        (["task=ptq", "placement=graph"], PlacementError, r"RowLSTM has recurrent layers, lstm, .* Use task=dynamic"),
    ],
)
def test_what_is_refused(
    config: Config, overrides: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(config(tmp_path / "run", "model=row_lstm", "model.hidden=4", "data.image_size=8", *overrides))


def test_keys_without_effect_are_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    given = ["task=dynamic", "qat.epochs=3", "quant.weight.bits=4", "quant.activation.bits=4", "placement=modules"]
    monkeypatch.setattr("qat.pipeline.weights.command_line", lambda: given)
    say_unused("dynamic")
    assert "no effect of qat.epochs=3, quant.activation.bits=4, placement=modules" in caplog.text
