from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qat.presets import preset_names
from qat.provenance import differences, provenance
from qat.recipe import QuantRecipe
from qat.target import Target

W8A8, ORT = QuantRecipe.parse("w8a8"), Target.parse("onnxruntime")


@pytest.mark.parametrize("name", preset_names("quant"))
def test_a_recipe_does_not_differ_from_itself_after_a_file(tmp_path: Path, name: str) -> None:
    recipe = QuantRecipe.parse(name)
    torch.save(provenance(recipe, ORT), tmp_path / "about")
    assert differences(torch.load(tmp_path / "about", weights_only=True), recipe, ORT) == []


def test_every_setting_that_differs_is_named() -> None:
    other = replace(W8A8, weight=replace(W8A8.weight, bits=4), exclude=("fc",))
    assert differences(provenance(W8A8, ORT), other, replace(ORT, opset=18)) == [
        "recipe.weight.bits is 8 in the checkpoint and 4 here",
        "recipe.exclude is [] in the checkpoint and ['fc'] here",
        "target.opset is 21 in the checkpoint and 18 here",
    ]


def test_options_of_one_side_alone() -> None:
    latest = QuantRecipe.parse("w8a8_symmetric")
    found = differences(provenance(W8A8, ORT), latest, ORT)
    assert "recipe.name is w8a8 in the checkpoint and w8a8_symmetric here" in found
    without = provenance(W8A8, ORT)
    del without["settings"]["recipe.weight.observer.options.latest"]
    assert differences(without, W8A8, ORT) == [
        "recipe.weight.observer.options.latest is not there in the checkpoint and True here"
    ]


def test_the_first_format_knew_names() -> None:
    assert differences({"format": 1, "recipe": "w8a8", "target": "onnxruntime"}, W8A8, ORT) == []
    assert differences({"format": 1, "recipe": "w4a8", "target": "onnxruntime"}, W8A8, ORT) == [
        "recipe.name is w4a8 in the checkpoint and w8a8 here"
    ]


def test_a_checkpoint_from_before_budgets_is_the_same_recipe():
    recipe, target = QuantRecipe.parse("w4a4_lsq"), Target.parse("onnxruntime")
    saved = provenance(recipe, target)
    for key in ("recipe.budget", "recipe.budget_mb"):
        assert saved["settings"].pop(key) is None
    assert differences(saved, recipe, target) == []


@pytest.mark.parametrize("value", [torch.tensor([]), torch.ones(2), [torch.ones(2)], {1, 2}, b"8"])
def test_a_setting_that_is_no_plain_value(value: object) -> None:
    saved = provenance(W8A8, ORT)
    saved["settings"]["recipe.weight.bits"] = value
    (found,) = differences(saved, W8A8, ORT)
    assert found.startswith("its entry 'qat' has settings that are no plain values (Object of type ")
