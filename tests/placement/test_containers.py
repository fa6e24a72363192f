"""A dict as forward sees it while it is traced: a dict in every way, and what was asked of it is noted."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from torch import fx

from qat.placement.containers import Asked, Facts, OpenedDict, What, opened


def dict_of(example: dict[str, Any]) -> tuple[Any, Facts]:
    """An opened dict whose entries are read as their keys in capitals."""
    facts: Facts = {}
    found = opened(object(), example, ("b",), lambda value, path, like: str(path[-1]).upper(), facts)
    return found, facts


def changed(found: Any, change: Callable[[Any], Any]) -> Any:
    change(found)
    return dict(found)


HAS, KEYS, LENGTH, VALUE = What.HAS, What.KEYS, What.LENGTH, What.VALUE
ALL = {Asked(KEYS, ("b",)): ("x", "y")}
TWO = {Asked(LENGTH, ("b",)): 2}


@pytest.mark.parametrize(
    ("look", "answer", "noted"),
    [
        (lambda b: b["x"], "X", {}),
        (lambda b: b.get("x"), "X", {}),
        (lambda b: b.get("z", 1), 1, {Asked(HAS, ("b", "z")): False}),
        (lambda b: "x" in b, True, {Asked(HAS, ("b", "x")): True}),
        (lambda b: "z" in b, False, {Asked(HAS, ("b", "z")): False}),
        (lambda b: list(b), ["x", "y"], ALL | TWO),
        (lambda b: list(reversed(b)), ["y", "x"], ALL | TWO),
        (lambda b: list(b.keys()), ["x", "y"], ALL | TWO),
        (lambda b: list(b.values()), ["X", "Y"], ALL | TWO),
        (lambda b: list(b.items()), [("x", "X"), ("y", "Y")], ALL | TWO),
        (lambda b: {k: v for k, v in b.items()}, {"x": "X", "y": "Y"}, ALL),
        (lambda b: dict(b), {"x": "X", "y": "Y"}, ALL),
        (lambda b: dict(**b), {"x": "X", "y": "Y"}, ALL),
        (lambda b: {**b}, {"x": "X", "y": "Y"}, ALL),
        (lambda b: b.copy(), {"x": "X", "y": "Y"}, ALL),
        (lambda b: copy.copy(b), {"x": "X", "y": "Y"}, ALL),
        (lambda b: b | {"z": 1}, {"x": "X", "y": "Y", "z": 1}, ALL),
        (lambda b: {"z": 1} | b, {"z": 1, "x": "X", "y": "Y"}, ALL),
        (lambda b: len(b), 2, TWO),
        (lambda b: bool(b), True, TWO),
        (lambda b: b == {}, False, ALL | TWO),
        (lambda b: b != {"x": "X", "y": "Y"}, False, ALL | TWO),
        (lambda b: isinstance(b, dict), True, {}),
    ],
)
def test_what_is_asked_is_noted(look: Callable[[Any], Any], answer: Any, noted: Facts) -> None:
    found, facts = dict_of({"x": object(), "y": object()})
    assert look(found) == answer
    assert facts == noted


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (lambda b: b.pop("x"), {"y": "Y"}),
        (lambda b: b.pop("z", None), {"x": "X", "y": "Y"}),
        (lambda b: b.popitem(), {"x": "X"}),
        (lambda b: b.update(x=1, z=2), {"x": 1, "y": "Y", "z": 2}),
        (lambda b: b.__ior__({"x": 1}), {"x": 1, "y": "Y"}),
        (lambda b: b.setdefault("x", 1), {"x": "X", "y": "Y"}),
        (lambda b: b.setdefault("z", 1), {"x": "X", "y": "Y", "z": 1}),
        (lambda b: b.__delitem__("y"), {"x": "X"}),
        (lambda b: b.clear(), {}),
        (lambda b: b.__setitem__("x", b["y"]), {"x": "Y", "y": "Y"}),
    ],
)
def test_changes_are_a_dicts(change: Callable[[Any], Any], after: dict[str, Any]) -> None:
    assert changed(dict_of({"x": object(), "y": object()})[0], change) == after


def test_what_is_written_is_no_longer_the_input() -> None:
    found, facts = dict_of({"x": object()})
    found["z"] = 1
    del found["x"]
    noted = dict(facts)
    assert ("z" in found, "x" in found, found.get("x"), found["z"]) == (True, False, None, 1)
    assert facts == noted
    with pytest.raises(KeyError):
        found["x"]


def test_every_method_of_a_dict_is_its_own() -> None:
    """What came from `dict` itself would see an empty one."""
    harmless = {"__init__", "__new__", "__getattribute__", "__sizeof__", "__class_getitem__", "fromkeys", "__repr__",
                "__doc__", "__hash__", "__ge__", "__gt__", "__le__", "__lt__"}  # fmt: skip
    inherited = {name for name in vars(dict) if getattr(OpenedDict, name) is getattr(dict, name)}
    assert inherited <= harmless


def test_settings_and_containers_inside() -> None:
    example = OrderedDict(
        flag=True, name="a", nothing=None, more={"z": object()}, names=["a", "b"], few=(object(), None)
    )
    found, facts = dict_of(example)
    assert facts == {}
    assert (found["flag"], found["name"], found["nothing"]) == (True, "a", None)
    assert found["more"]["z"] == "Z"
    assert found["names"] == "NAMES"  # left closed: names of examples are no settings
    assert found["few"] == ("0", None)
    assert facts == {
        Asked(VALUE, ("b", "flag")): True,
        Asked(VALUE, ("b", "name")): "a",
        Asked(VALUE, ("b", "nothing")): None,
        Asked(LENGTH, ("b", "few")): 2,
        Asked(VALUE, ("b", "few", 1)): None,
    }


def test_a_deep_copy_is_refused() -> None:
    with pytest.raises(fx.proxy.TraceError, match=r"copy\.deepcopy"):
        copy.deepcopy(dict_of({"x": object()})[0])
