from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import ConfigError
from qat.models.keys import check_rename, heads, nearest, suggest, translate

WANTED = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (2, 4), "fc.bias": (2,)}


def with_prefix(prefix, shapes=WANTED):
    return {prefix + key: shape for key, shape in shapes.items()}


@given(st.lists(st.sampled_from(["module", "model", "net", "_orig_mod"]), max_size=4))
def test_any_chain_of_wrappers_is_stripped(chain):
    prefix = "".join(f"{part}." for part in chain)
    found = translate(with_prefix(prefix), WANTED, {})
    assert found.prefix == prefix
    assert found.source == {key: prefix + key for key in WANTED}
    assert (found.outside, found.clashes, found.unused) == ((), (), ())


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_a_submodule_called_model_is_kept(prefix):
    wanted = with_prefix("model.")
    found = translate(with_prefix(prefix, wanted), wanted, {})
    assert found.prefix == prefix
    assert set(found.source) == set(wanted)


def test_a_submodule_called_model_beside_others_is_kept():
    wanted = with_prefix("model.") | {"head.weight": (5, 2)}
    assert translate(wanted, wanted, {}).source == {key: key for key in wanted}


def test_compiled_submodule_in_the_middle():
    found = translate({"model.stage._orig_mod.conv.weight": (1,)}, {"stage.conv.weight": (1,)}, {})
    assert found.source == {"stage.conv.weight": "model.stage._orig_mod.conv.weight"}


def test_compiled_model_keeps_its_own_component():
    wanted = with_prefix("_orig_mod.")
    assert translate(wanted, wanted, {}).source == {key: key for key in wanted}


def test_other_parts_of_what_was_saved_stay_outside():
    given = with_prefix("net.") | {"teacher.conv.weight": (4, 3, 3, 3), "loss.weight": (2,)}
    found = translate(given, WANTED, {})
    assert found.outside == ("teacher.conv.weight", "loss.weight")
    assert set(found.source) == set(WANTED)


def test_key_without_the_prefix_is_taken_where_it_fits():
    given = {"module.conv.weight": (4, 3, 3, 3), "module.conv.bias": (4,), "fc.weight": (2, 4), "fc.bias": (2,)}
    found = translate(given, WANTED, {})
    assert set(found.source) == set(WANTED)
    assert found.outside == ()


@pytest.mark.parametrize(
    ("rename", "key", "new"),
    [
        ({"linear": "fc"}, "linear.weight", "fc.weight"),
        ({"linear": "fc"}, "linear", "fc"),
        ({"a.linear": "fc"}, "a.linear.weight", "fc.weight"),
        ({"a": "b", "a.linear": "fc"}, "a.linear.weight", "fc.weight"),
        ({"backbone": ""}, "backbone.fc.weight", "fc.weight"),
        ({"": "fc"}, "weight", "fc.weight"),
    ],
)
def test_rename(rename, key, new):
    assert translate({key: (1,)}, {new: (1,)}, rename).source == {new: key}


@pytest.mark.parametrize("key", ["linear2.weight", "head.linear.weight", "my_linear.weight"])
def test_rename_takes_whole_leading_components_only(key):
    found = translate({key: (1,)}, {"fc.weight": (1,)}, {"linear": "fc"})
    assert found.source == {key: key}
    assert found.unused == ("linear",)


def test_rename_can_swap():
    found = translate({"a.w": (1,), "b.w": (2,)}, {"a.w": (2,), "b.w": (1,)}, {"a": "b", "b": "a"})
    assert found.source == {"b.w": "a.w", "a.w": "b.w"}
    assert found.clashes == ()


def test_rename_onto_another_key_clashes():
    assert translate({"a.w": (1,), "b.w": (1,)}, {"b.w": (1,)}, {"a": "b"}).clashes == (("a.w", "b.w"),)


def test_check_rename():
    assert check_rename(None) == {}
    assert check_rename({0: "conv1", "linear": "fc"}) == {"0": "conv1", "linear": "fc"}


@pytest.mark.parametrize("rename", [{"linear": None}, {"linear": {"a": "b"}}, {True: "a"}, "linear=fc", ["linear"]])
def test_rename_of_something_else(rename):
    with pytest.raises(ConfigError, match=r"init_rename: need \{OLD: NEW\} with names.*got "):
        check_rename(rename)


@pytest.mark.parametrize(
    ("given", "wanted", "total", "renames"),
    [
        ({"linear.weight": (2, 4), "linear.bias": (2,)}, {"fc.weight": (2, 4), "fc.bias": (2,)}, 4, {"linear": "fc"}),
        (with_prefix("backbone."), WANTED, 4, {"backbone": ""}),
        (WANTED, with_prefix("encoder."), 4, {"": "encoder"}),
        # two renames together
        (
            {"stem.weight": (4, 3, 3, 3), "stem.bias": (4,), "linear.weight": (2, 4), "linear.bias": (2,)},
            WANTED,
            4,
            {"stem": "conv", "linear": "fc"},
        ),
        # nothing that a rename would mend
        ({"linear.weight": (2, 9)}, {"fc.weight": (2, 4)}, 4, {}),
        # a chance match of one bias does not make the model fit
        ({"x.bias": (4,)}, WANTED, 4, {}),
        ({}, WANTED, 4, {}),
    ],
)
def test_suggest(given, wanted, total, renames):
    assert suggest(given, wanted, total) == renames


def test_nearest():
    assert nearest("layer1.0.conv1", ["fc", "layer1.0.conv2", "bn1"]) == "layer1.0.conv2"
    assert nearest("backbone.bn1.weight", ["conv1.weight", "bn1.weight", "backbone_bn1.bias"]) == "bn1.weight"
    assert nearest("fc", []) == ""


def test_heads():
    assert heads(["a.b.weight", "a.b.bias", "c.weight", "d"]) == ["a", "a.b", "c"]
