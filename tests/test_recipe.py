from __future__ import annotations

import copy
import dataclasses

import pytest

from qat.component import Component
from qat.errors import ConfigError
from qat.presets import load_preset, preset_names
from qat.recipe import QuantRecipe, numerics
from qat.spec import Granularity, IntSpec, Scheme
from qat.target import Target

W8A8 = QuantRecipe.parse("w8a8")


def changed(**changes):
    """The mapping of w8a8 with `weight__bits=4` written into it."""
    mapping = copy.deepcopy(load_preset("quant", "w8a8"))
    for path, value in changes.items():
        *parents, leaf = path.split("__")
        at = mapping
        for key in parents:
            at = at[key]
        at[leaf] = value
    return mapping


@pytest.mark.parametrize("name", preset_names("quant"))
@pytest.mark.parametrize("target", preset_names("target"))
def test_every_recipe_gets_grids_on_every_target(name, target):
    recipe, place = QuantRecipe.parse(name), Target.parse(target)
    if recipe.activation.bits < 8 and not place.narrow_activations:
        with pytest.raises(ConfigError, match=f"target {target} stores activations of 8 bits"):
            numerics(recipe, place)
        return
    grids = numerics(recipe, place)
    assert grids.weight.bits == min(recipe.weight.bits, place.weight_bits)
    assert grids.activation.signed == place.activation_signed
    assert QuantRecipe.parse(load_preset("quant", name)) == recipe


def test_w8a8_for_onnxruntime_stores_seven_bits_and_says_why():
    grids = numerics(W8A8, Target.parse("onnxruntime"))
    assert grids.weight == IntSpec(bits=7, narrow=True, granularity=Granularity.PER_CHANNEL)
    assert grids.activation == IntSpec(signed=False, scheme=Scheme.AFFINE)
    (note,) = grids.notes
    assert note.startswith("weights: 8 -> 7 bits, ")
    assert "VNNI" in note


def test_nothing_to_say_where_the_target_agrees():
    assert numerics(W8A8, Target.parse("onnxruntime_vnni")).notes == ()
    assert numerics(QuantRecipe.parse("w4a8"), Target.parse("onnxruntime")).notes == ()


def test_a_recipe_is_a_value():
    assert QuantRecipe.parse(W8A8) is W8A8
    assert W8A8.weight.observer == Component(path="qat.observers.MinMax", options={"latest": True})
    assert W8A8.exclude == ()
    assert QuantRecipe.parse(changed(exclude=["fc", "layer1.*"])).exclude == ("fc", "layer1.*")
    with pytest.raises(dataclasses.FrozenInstanceError, match="name"):
        W8A8.name = "other"


def test_a_change_is_a_recipe_with_other_values():
    four = W8A8.weight.changed({"bits": 4, "granularity": "per_tensor"}, "override['fc'].weight")
    assert four == dataclasses.replace(W8A8.weight, bits=4, granularity=Granularity.PER_TENSOR)
    assert W8A8.tensor("weight") is W8A8.weight
    assert W8A8.tensor("activation") is W8A8.activation


@pytest.mark.parametrize("name", [n for n in preset_names("quant") if not n.startswith("w8")])
def test_recipes_below_8_bits_keep_the_first_and_last_layers(name):
    assert QuantRecipe.parse(name).first_last_bits == 8


def test_parsing_leaves_the_mapping_alone():
    mapping = changed()
    QuantRecipe.parse(mapping)
    assert mapping == load_preset("quant", "w8a8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exclud": []}, r"unknown key of a recipe 'exclud'\. Did you mean exclude\?"),
        ({"weight__bit": 8}, r"unknown key of quant\.weight 'bit'\. Did you mean bits\?"),
        ({"weight__bits": 9}, r"need 2 <= bits <= 8, got bits=9"),
        ({"activation__bits": "8"}, r"need 2 <= bits <= 8, got bits='8'"),
        ({"activation__scheme": "asym"}, r"unknown scheme 'asym'; known: affine, symmetric"),
        ({"weight__granularity": "per_block"}, r"unknown granularity 'per_block'"),
        ({"activation__granularity": "per_channel"}, r"activation\.granularity must be per_tensor"),
        ({"activation__observer": {}}, r"need a mapping with _target_"),
        ({"activation__observer": {"_target_": "qat.observers.MinMax", "momentum": 1}}, r"takes no option momentum"),
        ({"weight": {"bits": 8}}, r"quant\.weight lacks scheme, granularity, observer, quantizer; start from"),
        ({"activation": None}, r"quant\.activation lacks bits, scheme"),
        ({"first_last_bits": 9}, r"need 2 <= bits <= 8, got bits=9"),
        ({"sum_bits": 1}, r"need 2 <= bits <= 8, got bits=1"),
        ({"override": {"fc": {"weight": {"bits": 1}}}}, r"need 2 <= bits <= 8, got bits=1"),
        (
            {"override": {"fc": {"weight": {"bit": 4}}}},
            r"key of quant\.override\['fc'\]\.weight 'bit'\. Did you mean bits",
        ),
        (
            {"override": {"fc": {"weights": {"bits": 4}}}},
            r"override\['fc'\] needs a mapping of weight or activation, got",
        ),
        (
            {"override": {"fc": {"weight": 4}}},
            r"quant\.override\['fc'\]\.weight needs a mapping such as {bits: 4}, got 4",
        ),
        ({"override": {"fc": 4}}, r"override\['fc'\] needs a mapping of weight or activation, got 4"),
        ({"activation__narrow": True}, r"^activation\.narrow must be false: only weights leave out an integer"),
        (
            {"override": {"fc": {"activation": {"narrow": True}}}},
            r"override\['fc'\]\.activation\.narrow must be false: only weights",
        ),
    ],
)
def test_what_a_recipe_refuses(changes, message):
    with pytest.raises(ConfigError, match=message):
        QuantRecipe.parse(changed(**changes))


def test_a_recipe_needs_a_name():
    mapping = changed()
    del mapping["name"]
    with pytest.raises(ConfigError, match="a recipe needs a name: name=my_recipe"):
        QuantRecipe.parse(mapping)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown recipe 'w5a5'\..* Known: .*w8a8"):
        QuantRecipe.parse("w5a5")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight__scheme": "affine"}, r"weight\.scheme must be symmetric for target onnxruntime"),
    ],
)
def test_what_a_target_cannot_run(changes, message):
    with pytest.raises(ConfigError, match=message):
        numerics(QuantRecipe.parse(changed(**changes)), Target.parse("onnxruntime"))


@pytest.mark.parametrize("bits", range(2, 9))
def test_every_level_per_channel_where_its_mirror_image_can_be_stored(bits):
    recipe = QuantRecipe.parse(changed(weight__bits=bits, weight__narrow=False))
    grids = numerics(recipe, Target.parse("onnxruntime_vnni"))
    narrow = bits in (4, 8)
    assert (grids.weight.qmin, grids.weight.qmax) == (-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1)
    assert any(f"weights of {bits} bits: without {-(2 ** (bits - 1))}" in note for note in grids.notes) == narrow


def test_a_whole_weight_on_one_scale_may_use_the_full_range():
    recipe = QuantRecipe.parse(changed(weight__granularity="per_tensor", weight__narrow=False))
    grid = numerics(recipe, Target.parse("onnxruntime_vnni")).weight
    assert (grid.qmin, grid.qmax) == (-128, 127)


def test_a_target_without_zero_points_overrules_the_scheme():
    grids = numerics(W8A8, Target(name="mine", activation_signed=True, activation_symmetric=True))
    assert str(grids.activation) == "int8[-128,127] symmetric per_tensor"
    assert "activations: affine -> symmetric, mine has no zero points" in grids.notes


def test_narrow_activations_where_the_target_has_none():
    recipe = QuantRecipe.parse(changed(activation__bits=4))
    with pytest.raises(ConfigError, match="target mine stores activations of 8 bits, and recipe w8a8 has 4: use quant"):
        numerics(recipe, Target(name="mine", narrow_activations=False))


def test_overrides_come_from_a_file(tmp_path):
    path = tmp_path / "override.yaml"
    path.write_text("# found\nlayer1.*:\n  weight: {bits: 3}\n")
    base = load_preset("quant", "w4a8")
    recipe = QuantRecipe.parse({**base, "override": str(path)})
    assert recipe.override == {"layer1.*": {"weight": {"bits": 3}}}
    assert recipe == QuantRecipe.parse({**base, "override": path})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"quant.override=.*override.yaml is no file; task=analyze writes one, RUN/override.yaml"),
        ("- layer1", r"quant.override=.*override.yaml needs a mapping such as layer1.\*: .*, got \['layer1'\]"),
        ("", r"needs a mapping such as .*, got None"),
        ("a: {b", r"quant.override=.*override.yaml is damaged: .*Write it again"),
        ("a: {weight: {bits: 9}}", r"need 2 <= bits <= 8, got bits=9"),
    ],
)
def test_a_file_without_overrides(tmp_path, text, message):
    path = tmp_path / "override.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        QuantRecipe.parse({**load_preset("quant", "w4a8"), "override": str(path)})


def test_widths_that_were_found_come_before_the_users_own():
    base = load_preset("quant", "w4a8")
    own = {"a": {"weight": {"quantizer": {"_target_": "qat.quantizers.LSQ"}}}, "b.*": {"activation": {"bits": 7}}}
    recipe = QuantRecipe.parse({**base, "override": own, "budget": 5, "budget_mb": 1})
    found = {"a": {"weight": {"bits": 3}, "activation": {"bits": 6}}, "b.c": {"activation": {"bits": 4}}}
    settled = recipe.settled(found)
    assert list(settled.override) == ["b.c", "a", "b.*"]
    assert settled.override["a"] == {"weight": {"bits": 3, **own["a"]["weight"]}, "activation": {"bits": 6}}
    assert (settled.budget, settled.budget_mb, settled.limits) == (None, None, None)
    assert recipe.settled().override == own


def test_a_budget_is_checked_where_the_recipe_is_read():
    base = load_preset("quant", "w4a8")
    assert str(QuantRecipe.parse({**base, "budget": {"weight": 5}}).limits) == "mean bits 5 for weights"
    with pytest.raises(ConfigError, match=r"need 2 <= quant.budget <= 8"):
        QuantRecipe.parse({**base, "budget": 16})
