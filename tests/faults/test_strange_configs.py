"""Values that make no sense, at any key of the config: taken, or refused by a `QatError`; never a traceback."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from qat.errors import QatError
from qat.pipeline import run
from qat.pipeline.aids import read_callbacks, read_distillation, require_scales
from qat.pipeline.analysis import read_analysis
from qat.pipeline.callback import build_callback
from qat.pipeline.helpers import read_helpers
from qat.pipeline.sensible import require_sensible
from qat.pipeline.source import read_source
from qat.pipeline.tasks import require_task
from qat.pipeline.wanted import read_recipe, read_targets, read_tolerance
from qat.target import joint

CONF = Path(__file__).parents[2] / "conf"

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**12),
    st.floats(),
    st.text("abcw8{}[]_ -.:/", max_size=8).filter(lambda text: "${" not in text),
    st.lists(st.integers(-3, 9), max_size=3),
    st.dictionaries(st.sampled_from(["bits", "name", "x"]), st.integers(-1, 9), max_size=2),
)


@cache
def config() -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", ["run_dir=/nowhere", "model=resnet20"])
    return OmegaConf.to_container(cfg)


def keys(node: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in node.items():
        found.append((*prefix, key))
        if isinstance(value, dict):
            found += keys(value, (*prefix, key))
    return found


READ = [k for k in keys(config()) if k[0] != "hydra"]  # every key there is


@pytest.fixture(autouse=True, scope="module")
def _switches_of_torch() -> Iterator[None]:
    """A Trainer sets them when it is built."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = benchmark
    logging.getLogger("pytorch_lightning").setLevel(logging.INFO)


def reads_or_refuses(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    """All that the run decides before it touches data."""
    content = copy.deepcopy(config())
    for path, value in changes:
        node = content
        for key in path[:-1]:
            node = node[key] if isinstance(node.get(key), dict) else {}
        node[path[-1]] = value
    try:
        cfg = DictConfig(content)
        require_task(cfg)
        require_sensible(cfg)
        recipe, target = read_recipe(cfg), joint(read_targets(cfg))
        read_analysis(cfg, recipe, target)
        recipe = recipe.settled()
        build_callback(cfg, recipe, target)
        read_callbacks(cfg, recipe)
        read_distillation(cfg, read_source(cfg))
        read_helpers(cfg)
        require_scales(cfg, recipe)
        read_tolerance(cfg)
    except QatError as error:
        assert str(error)  # noqa: PT017  (either outcome is right)


changes = st.lists(st.tuples(st.sampled_from(READ), values), min_size=1, max_size=2)


@settings(max_examples=50)
@given(changes)
def test_any_value_anywhere(found):
    reads_or_refuses(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=10_000)
@given(changes)
def test_any_value_anywhere_ten_thousand_times(found):
    reads_or_refuses(found)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("seed=-1", r"need seed to be an integer in 0 \.\. 4294967295, got -1"),
        ("seed=abc", r"need seed to be an integer .*, got 'abc'"),
        ("cache_dir=null", "need cache_dir to be a path, got None"),
        ("latency.repeats=0", "need latency.repeats to be an integer >= 1, got 0"),
        ("latency=null", "latency needs a section, got None; see conf/latency"),
        ("float.optimizer.lr=-1", r"float\.optimizer and float\.scheduler: Invalid learning rate: -1"),
        ("float.optimizer.lr=nan", r"learning rates of float\.optimizer and float\.scheduler are not finite"),
        ("qat.optimizer.momentum=x", r"qat\.optimizer"),
        ("float.scheduler.pct_start=3", "float.*pct_start"),
        ("float.label_smoothing=2", "need 0 <= label_smoothing < 1, got 2"),
        ("qat.epochs=1.5", r"need qat\.epochs >= 0, got 1\.5"),
        ("data.batch_size=0", r"data\.batch_size must be an integer >= 1, got 0"),
        ("data.augmentation=flop", "unknown data.augmentation 'flop'"),
        ("trainer.accelerator=abacus", "trainer: .*abacus"),
        ("trainer.accumulate_grad_batches=0", "need trainer.accumulate_grad_batches to be an integer >= 1, got 0"),
        ("+trainer.callbacks=[]", "trainer.callbacks is set by the run itself"),
        ("logger._target_=nowhere.Logger", "logger._target_ 'nowhere.Logger' cannot be imported"),
        ("+logger.colour=red", "logger.colour: .* takes no such key"),
        ("objective=speed", "unknown objective 'speed'"),
        ("also=openvino", r"need also to be a list such as \[openvino\], got 'openvino'"),
        ("qat.scale_lr=0.1", r"qat\.scale_lr=0\.1 has no effect: recipe w8a8 trains no ranges"),
        ("task=knit", "unknown task 'knit'"),
    ],
)
def test_refused_before_anything_is_written(tmp_path: Path, given: str, message: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"run_dir={tmp_path}/run", "model=resnet20", given])
    with pytest.raises(QatError, match=message):
        run(cfg)
    assert [path for path in tmp_path.rglob("*") if path.name not in ("run", ".lock")] == []
