"""Sensitivity against running the whole model with one quantizer on, or off; the model is as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.errors import CalibrationError, ConfigError, NumericsError, PlacementError


@pytest.fixture
def batches(images):
    return [(images[:8], torch.arange(8) % 5), (images[8:], torch.arange(8) % 5)]


def score(prepared, model, batches):
    """Noise and loss, over whole batches at once."""
    x, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    y, reference = prepared(x).double(), model(x).double()
    return float((y - reference).square().sum() / reference.square().sum()), float(F.cross_entropy(y, labels))


@torch.no_grad()
def test_one_at_a_time_and_all_but_one(small_net, batches):
    before = {name: value.clone() for name, value in small_net.state_dict().items()}
    found = qat.measure_sensitivity(small_net, batches, "w4a4_lsq", weight_bits=(4,), activation_bits=())
    prepared = qat.prepare(small_net, batches[0][0], "w4a4_lsq").eval()
    qat.calibrate(prepared, batches)
    assert (found.quantized.noise, found.quantized.loss) == pytest.approx(score(prepared, small_net, batches))
    assert {m.unit.quantizer for m in found.tensors} == set(qat.quantizers(prepared))
    for measured in found.tensors:
        quantizer = qat.quantizers(prepared)[measured.unit.quantizer]
        assert measured.bits == quantizer.spec.bits
        for on, got in ((True, measured.alone), (False, measured.without)):
            qat.fake_quant(prepared, enabled=not on)
            quantizer.enabled = on
            assert (got.noise, got.loss) == pytest.approx(score(prepared, small_net, batches), rel=1e-6), measured.unit
    assert (found.examples, found.model) == (16, "SmallNet")
    assert all(torch.equal(value, before[name]) for name, value in small_net.state_dict().items())


@torch.no_grad()
def test_each_width_is_what_a_recipe_of_that_width_does(small_net, batches):
    found = qat.measure_sensitivity(
        small_net, batches, "w4a4_lsq", weight_bits=(2, 8, 7), activation_bits=(3,), under_recipe=False
    )
    assert found.quantized is None
    for measured in found.tensors:
        assert measured.alone is measured.without is None
        wanted = {"weight": [(2, 2), (7, 7)], "activation": [(3, 3)]}[measured.unit.tensor]  # of 7 and 8, one grid
        assert [(at.bits, at.grid_bits) for at in measured.widths] == (wanted if measured.unit.open else [])
    for which, bits in (("weight", 2), ("activation", 3)):
        narrow = qat.presets.load_preset("quant", "w4a4_lsq")
        narrow[which]["bits"] = bits
        prepared = qat.prepare(small_net, batches[0][0], narrow).eval()
        qat.calibrate(prepared, batches)
        for measured in (m for m in found.tensors if m.unit.open and m.unit.tensor == which):
            qat.fake_quant(prepared, enabled=False)
            qat.quantizers(prepared)[measured.unit.quantizer].enabled = True
            expected = score(prepared, small_net, batches)[0]
            assert measured.widths[0].score.noise == pytest.approx(expected, rel=1e-6), measured.unit


def test_what_an_exception_fixed_is_not_varied(small_net, batches):
    recipe = qat.presets.load_preset("quant", "w4a4_lsq")
    recipe["override"] = {
        "depthwise": {"weight": {"bits": 6}},
        "*": {"activation": {"observer": recipe["weight"]["observer"]}},
    }
    found = qat.measure_sensitivity(small_net, batches, recipe, under_recipe=False)
    opened = {(m.unit.name, m.unit.tensor) for m in found.tensors if m.unit.open}
    # first and last layers and sums are fixed too; an observer is no width
    assert opened == {("point", "weight"), ("stem", "activation"), ("depthwise", "activation")}


class Fragile(nn.Module):
    """The middle layer's outputs are what the last one tells classes by; the others only pass on."""

    def __init__(self):
        super().__init__()
        self.first, self.fragile, self.last = (nn.Linear(8, 8, bias=False) for _ in range(3))
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(8))
            self.fragile.weight.copy_(torch.eye(8))
            self.last.weight.copy_(torch.eye(8))
            self.fragile.weight += 0.04 * torch.randn(8, 8)  # between 0 and the first integer of 4 bits

    def forward(self, x):
        return self.last(self.fragile(self.first(x)))


def test_a_fragile_layer_ranks_first():
    x = torch.randn(64, 8)
    found = qat.measure_sensitivity(Fragile(), [(x, torch.randint(8, (64,)))], "w4a8", weight_bits=(4,))
    weights = [m for m in found.tensors if m.unit.tensor == "weight"]
    assert min(weights, key=lambda m: m.alone.snr).unit.name == "fragile"
    assert max(weights, key=lambda m: m.without.snr).unit.name == "fragile"  # most is gained where it stays in float


def test_without_labels_there_is_no_loss(small_net, images):
    found = qat.measure_sensitivity(small_net, [images], "w4a8", activation_bits=())
    assert found.float_loss is found.quantized.loss is None
    assert found.quantized.snr > 0


def test_a_budget_says_what_is_measured(small_net, batches):
    recipe = {**qat.presets.load_preset("quant", "w4a4_lsq"), "budget": {"activation": 6}}
    found = qat.measure_sensitivity(small_net, batches, recipe, under_recipe=False)
    assert {m.unit.tensor for m in found.tensors if m.widths} == {"activation"}
    assert found.recipe.budget == {"activation": 6}


def test_a_target_that_stores_8_bit_activations_varies_weights_alone(small_net, batches):
    found = qat.measure_sensitivity(small_net, batches, "w4a8", "tensorrt", under_recipe=False)
    assert {at.bits for m in found.tensors if m.unit.tensor == "activation" for at in m.widths} == {8}


def test_progress_is_shown_batch_by_batch(small_net, batches):
    stages = []

    def watch(units, stage):
        stages.append((stage, len(units)))
        return units

    qat.measure_sensitivity(small_net, batches, "w4a4_lsq", weight_bits=(4,), activation_bits=(8,), progress=watch)
    assert stages[0] == ("alone, batch 1 of 2", 11)
    assert stages[-1] == ("8 bits, batch 2 of 2", 2)  # two activations are open


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weight_bits": (1, 4)}, r"need 2 <= bits <= 8, got bits=1"),
        ({"activation_bits": 8}, r"need activation_bits as a list of widths such as \[4, 8\], got 8"),
    ],
)
def test_widths_out_of_range(small_net, images, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        qat.measure_sensitivity(small_net, [images], **kwargs)


def test_no_batch(small_net):
    with pytest.raises(CalibrationError, match="sensitivity needs at least one batch"):
        qat.measure_sensitivity(small_net, [])


def test_a_prepared_model_is_no_float_model(small_net, images):
    with pytest.raises(PlacementError, match="already prepared"):
        qat.measure_sensitivity(qat.prepare(small_net, images), [images])


def test_infinite_outputs(images):
    class Divides(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            y = self.conv(x).mean((2, 3))
            return y / (y - y)

    with pytest.raises(NumericsError, match="NaN or Inf"):
        qat.measure_sensitivity(Divides().eval(), [images])
