"""The float model of a run: what its place in the cache depends on, and on which images it is measured."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig

from qat.errors import ConfigError
from qat.models import resnet20
from qat.pipeline import baseline, run
from qat.pipeline.baseline import float_baseline
from qat.pipeline.classifier import build_classifier
from qat.pipeline.source import read_source
from qat.pipeline.trainer import measure_top1
from qat.settings import build

Config = Callable[..., DictConfig]
QUICK = ["model=resnet20", "trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "data.image_size=8"]
pytestmark = pytest.mark.filterwarnings("ignore")  # a run shows none of Lightning's either (terminal.quiet)


def produced_by(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """What the cache is asked for; nothing is trained."""
    asked: list[Mapping[str, Any]] = []
    monkeypatch.setattr(baseline, "cached_baseline", lambda _, by, *rest: asked.append(by))
    data = build(cfg, "data")
    data.setup()
    float_baseline(cfg, read_source(cfg), data)
    return asked[0]


@pytest.mark.parametrize(
    "given",
    [
        "trainer.limit_train_batches=1", "trainer.accumulate_grad_batches=8", "trainer.gradient_clip_val=1.0",
        "trainer.precision=bf16-mixed", "+trainer.max_steps=3", "float.epochs=1", "seed=1", "data.batch_size=8",
    ],
)  # fmt: skip
def test_what_decides_the_weights_has_a_place_of_its_own(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    assert produced_by(config(tmp_path), monkeypatch) != produced_by(config(tmp_path, given), monkeypatch)


@pytest.mark.parametrize(
    "given", ["data.num_workers=2", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=1", "qat.epochs=9"]
)
def test_what_does_not_shares_it(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    assert produced_by(config(tmp_path), monkeypatch) == produced_by(config(tmp_path, given), monkeypatch)


def test_a_shorter_validation_while_training_leaves_the_measured_images_alone(config: Config, tmp_path: Path) -> None:
    found = []
    for given in ((), ("trainer.limit_val_batches=1",)):
        cfg = config(tmp_path, "data.batch_size=16", *given)
        data = build(cfg, "data")
        data.setup()
        pl.seed_everything(0, verbose=False)
        found.append(measure_top1(cfg, build_classifier(cfg, "float", resnet20(num_classes=10), data), data))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("trainer.precision=bf16-true", "precision=bf16-true changes the type of scales"),
        ("trainer.limit_val_batches=0", "need trainer.limit_val_batches to be a number > 0, or null, got 0"),
    ],
)
def test_refused_before_the_float_model_is_trained(config: Config, tmp_path: Path, given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config(tmp_path, given))


def test_the_code_of_an_own_class_is_part_of_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that were trained with another forward are another model's, whatever their shapes."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    source = "from torch import nn\n\n\nclass Own(nn.Sequential):\n    pass\n"
    (tmp_path / "own_net_of_this_test.py").write_text(source)
    own = importlib.import_module("own_net_of_this_test").Own(resnet20(10))
    first = baseline.code_of(own)
    assert set(first) == {"own_net_of_this_test"}
    (tmp_path / "own_net_of_this_test.py").write_text(f"{source}\n# changed\n")
    assert baseline.code_of(own) != first
    monkeypatch.delitem(sys.modules, "own_net_of_this_test")
    assert baseline.code_of(resnet20(10)) == {}
