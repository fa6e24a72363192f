from __future__ import annotations

import pytest
import torch

from qat.component import Component
from qat.errors import ConfigError
from qat.observers import MinMax, MovingAverage


def test_builds_with_its_options_and_the_callers():
    observer = Component(path="qat.observers.MovingAverage", options={"momentum": 0.25}).build(shape=(3,), axis=0)
    assert isinstance(observer, MovingAverage)
    assert (observer.momentum, observer.axis, observer.low.shape) == (0.25, 0, (3,))


def test_the_caller_has_the_last_word():
    component = Component(path="qat.observers.MovingAverage", options={"momentum": 0.25})
    assert component.build(momentum=0.5).momentum == 0.5


def test_build_later_makes_a_new_one_each_time():
    make = Component(path="qat.observers.MinMax").build_later()
    first, second = make(shape=(2,)), make(shape=(2,))
    first.observe(torch.ones(2))
    assert isinstance(first, MinMax)
    assert first is not second
    assert second.low.isinf().all()


def test_parse_reads_hydras_spelling_and_leaves_the_mapping_alone():
    mapping = {"_target_": "qat.observers.MinMax", "latest": True}
    parsed = Component.parse(mapping)
    assert parsed == Component(path="qat.observers.MinMax", options={"latest": True})
    assert mapping == {"_target_": "qat.observers.MinMax", "latest": True}
    assert Component.parse(parsed) is parsed


@pytest.mark.parametrize("mapping", [{}, {"latest": True}, {"_target_": 3}])
def test_a_mapping_without_target(mapping):
    with pytest.raises(ConfigError, match=r"need a mapping with _target_: package\.module\.Name, got"):
        Component.parse(mapping)


@pytest.mark.parametrize("path", ["qat.observers.Percentil", "qat.nowhere.MinMax", "MinMax", ""])
def test_a_path_that_leads_nowhere(path):
    with pytest.raises(ConfigError, match=rf"_target_ '{path}' cannot be imported: .+ Name a public class as"):
        Component(path=path)


def test_an_option_that_the_class_does_not_take():
    with pytest.raises(ConfigError, match=r"MinMax takes no option momentum; it takes latest, shape, axis"):
        Component(path="qat.observers.MinMax", options={"momentum": 0.1})


def test_keyword_catch_alls_take_every_option():
    assert Component(path="builtins.dict", options={"any": 1}).build(more=2) == {"any": 1, "more": 2}
