"""Widths under a budget: against every choice there is, against the bytes of a file, and what cannot be met."""

from __future__ import annotations

import itertools

import onnx
import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

import qat
from qat.budget import Budget
from qat.errors import ConfigError
from qat.mixed import mix, require_possible


class Net(nn.Module):
    """Five layers, of which first and last are fixed: 8 weights and activations to choose from three widths each."""

    def __init__(self):
        super().__init__()
        sizes = (3, 8, 12, 16, 8, 4)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(sizes))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x).mean((2, 3))


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(8, 3, 6, 6)
    found = qat.measure_sensitivity(
        net, [x], "w4a4_lsq", weight_bits=(2, 4, 8), activation_bits=(3, 4, 8), under_recipe=False
    )
    return net, x, found


def every_choice(found, which):
    opened = [m for m in found.tensors if m.widths and m.unit.tensor == which]
    for pick in itertools.product(*(m.widths for m in opened)):
        yield {m.unit: at for m, at in zip(opened, pick, strict=True)}


def noise(widths):
    return sum(at.score.noise for at in widths.values())


@pytest.mark.parametrize("bits", [2.5, 3, 4.2, 5, 6.9])
def test_no_choice_within_the_mean_adds_less_noise(measured, bits):
    _, _, found = measured
    chosen = mix(found, Budget(weight=bits, activation=max(bits, 3)))
    for which in ("weight", "activation"):
        limit = bits if which == "weight" else max(bits, 3)
        kept = [
            noise(widths)
            for widths in every_choice(found, which)
            if sum(u.size * at.grid_bits for u, at in widths.items()) <= limit * sum(u.size for u in widths)
        ]
        assert chosen.mean_bits(which) <= limit + 1e-9
        ours = {unit: at for unit, at in chosen.widths.items() if unit.tensor == which}
        assert noise(ours) == pytest.approx(min(kept), rel=1e-9)


def test_a_wider_budget_never_adds_noise(measured):
    found = measured[2]
    snr = [mix(found, Budget(weight=b, activation=b)).snr for b in (3, 4, 5, 6, 7, 8)]
    assert snr == sorted(snr)


def integers_in(path):
    """Bytes of all integer weights in an ONNX file."""
    sizes = {onnx.TensorProto.INT4: 0.5, onnx.TensorProto.INT8: 1.0}
    graph = onnx.load(path).graph
    found = [*graph.initializer, *(a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute)]
    return sum(
        len(t.raw_data) or int(sizes[t.data_type] * torch.Size(t.dims).numel() + 0.5)
        for t in found
        if t.data_type in sizes and len(t.dims) > 1
    )


def test_megabytes_are_those_of_the_weights_in_the_file(measured, tmp_path):
    net, x, found = measured
    widest, narrowest = (mix(found, Budget(weight=b)).weight_bytes for b in (8, 2))
    chosen = mix(found, Budget(weight_bytes=(widest + narrowest) / 2))
    assert narrowest < chosen.weight_bytes <= (widest + narrowest) / 2
    assert {at.bits for unit, at in chosen.widths.items()} == {4, 8}  # 2 bits are stored in 4, and are worse
    recipe = qat.choose_bits(found, budget_mb=chosen.weight_bytes / 1e6)
    prepared = qat.prepare(net, x, recipe).eval()
    qat.calibrate(prepared, [x])
    artifact = qat.export(qat.convert(prepared), tmp_path / "mixed.onnx")
    assert integers_in(artifact.path) == chosen.weight_bytes


def test_where_files_do_not_pack_a_byte_is_a_byte(measured):
    net, x, _ = measured
    found = qat.measure_sensitivity(net, [x], "w4a8", "torch", under_recipe=False)
    assert mix(found, Budget(weight=4)).weight_bytes == sum(
        m.unit.size for m in found.tensors if m.unit.tensor == "weight"
    )


def test_the_recipe_has_every_width_and_keeps_what_the_user_said(measured):
    net, x, _ = measured
    name = "layers.2"
    raw = {
        **qat.presets.load_preset("quant", "w4a4_lsq"),
        "override": {
            name: {"activation": {"quantizer": {"_target_": "qat.quantizers.LSQPlus"}}},
            "layers.3": {"weight": {"bits": 6}},
        },
        "budget": 5,
    }
    found = qat.measure_sensitivity(net, [x], raw, under_recipe=False)
    recipe = qat.choose_bits(found)
    assert recipe.limits is None
    assert recipe.override[name]["activation"]["quantizer"] == {"_target_": "qat.quantizers.LSQPlus"}
    prepared = qat.prepare(net, x, recipe)
    bits = {path: q.spec.bits for path, q in qat.quantizers(prepared).items()}
    chosen = mix(found, found.recipe.limits)
    assert {u.quantizer: at.grid_bits for u, at in chosen.widths.items()}.items() <= bits.items()
    assert bits["layers.3.weight_quantizer"] == 6  # outside the search and the mean
    again = qat.QuantRecipe.parse({**raw, "budget": None, "override": yaml.safe_load(yaml.safe_dump(recipe.override))})
    assert again == recipe


def test_other_tensors_keep_the_recipes_width(measured):
    found = measured[2]
    recipe = qat.choose_bits(found, budget={"activation": 4})
    assert {which for change in recipe.override.values() for which in change} == {"activation"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, r"choose_bits needs a budget: budget=5 for mean bits"),
        ({"budget": {"weight": 5, "activation": 2.5}}, r"no choice of widths has mean bits of 2.5 for activations: the "
         r"smallest that can be met is 3, at 3, 4, 8 bits. Raise quant.budget, .*quant.budget=\{weight: BITS\}"),
        ({"budget_mb": 1e-4}, r"no choice of widths stores the weights in 0.0001 MB: the smallest quant.budget_mb that "
         r"can be met is 0.000264, at 2, 4, 8 bits, two to a byte at 4; 0.000056 of it are fixed"),
    ],
)  # fmt: skip
def test_what_cannot_be_met(measured, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        qat.choose_bits(measured[2], **kwargs)


def test_what_cannot_be_met_is_known_before_anything_is_measured(measured):
    net, x, _ = measured
    prepared, given = qat.prepare(net, x, "w4a4_lsq"), {"weight_bits": (2, 4, 8), "activation_bits": (3,)}
    require_possible(prepared, Budget(weight=2, activation=3), **given)
    require_possible(prepared, Budget(weight_bytes=264), **given)
    with pytest.raises(ConfigError, match=r"the smallest quant.budget_mb that can be met is 0.000264, at 2, 4, 8 bits"):
        require_possible(prepared, Budget(weight_bytes=263), **given)
    with pytest.raises(ConfigError, match=r"mean bits of 2 for activations: the smallest that can be met is 3, at 3 b"):
        require_possible(prepared, Budget(activation=2), **given)


def test_the_smallest_that_is_named_can_be_met(measured):
    assert mix(measured[2], Budget(weight_bytes=264)).weight_bytes == 264


def test_nothing_to_choose(measured):
    net, x, _ = measured
    found = qat.measure_sensitivity(net, [x], "w4a4_lsq", activation_bits=(), under_recipe=False)
    with pytest.raises(ConfigError, match=r"has no activation to choose a width for: first_last_bits, sum_bits and ov"):
        qat.choose_bits(found, budget=5)


def test_a_budget_is_no_recipe_yet(measured):
    net, x, _ = measured
    recipe = {**qat.presets.load_preset("quant", "w4a4_lsq"), "budget": 5}
    message = (
        r"recipe w4a4_lsq has a budget, mean bits 5 .*, and its widths are not found yet: qat.choose_bits\(qat.mea"
    )
    with pytest.raises(ConfigError, match=message):
        qat.prepare(net, x, recipe)
    with pytest.raises(ConfigError, match=message):
        qat.QuantizationAwareTraining(recipe=recipe)
    with pytest.raises(ConfigError, match=message):
        qat.quantize_weights(net, x, recipe)
