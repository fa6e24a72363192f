"""Values that make no sense, at any key of the config: taken, or refused by a `QatError`; never a traceback."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from qat.errors import QatError
from qat.pipeline.aids import read_distillation
from qat.pipeline.callback import build_callback
from qat.pipeline.helpers import read_helpers
from qat.pipeline.source import read_source
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


READ = [k for k in keys(config()) if k[0] in ("quant", "target", "qat", "verify", "ckpt_path", "placement",
                                              "model", "init_from", "init_reset_head")]  # fmt: skip


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
        build_callback(cfg, read_recipe(cfg), joint(read_targets(cfg)))
        read_distillation(cfg, read_source(cfg))
        read_helpers(cfg)
        read_tolerance(cfg)
    except QatError as error:
        assert str(error)  # noqa: PT017  (either outcome is right)


changes = st.lists(st.tuples(st.sampled_from(READ), values), min_size=1, max_size=2)


@settings(max_examples=50)
@given(changes)
def test_any_value_anywhere(found):
    reads_or_refuses(found)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(changes)
def test_any_value_anywhere_ten_thousand_times(found):
    reads_or_refuses(found)
