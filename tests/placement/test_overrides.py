from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.errors import ConfigError, PlacementError
from qat.models import build
from qat.quantizers import LSQ, ObservedFakeQuantize


def recipe(**changes) -> qat.QuantRecipe:
    return qat.QuantRecipe.parse({**qat.presets.load_preset("quant", "w8a8"), **changes})


def bits(prepared: qat.PreparedModel) -> dict[str, tuple[str | None, str | None]]:
    return {op.name: (op.weight, op.output) for op in prepared.plan.ops if op.weight or op.output}


def quantizer_bits(prepared: qat.PreparedModel) -> dict[str, int]:
    return {name: q.spec.bits for name, q in qat.placement.quantizers(prepared).items()}


def narrow(**changes) -> qat.QuantRecipe:
    """4-bit weights and activations."""
    base = recipe()
    four = {which: {**vars(base.tensor(which)), "bits": 4} for which in ("weight", "activation")}
    return recipe(name="w4a4", **four, **changes)


def test_without_exceptions_all_have_the_same_bits(small_net, images):
    assert set(quantizer_bits(qat.prepare(small_net, images, narrow())).values()) == {4}


def test_first_and_last_layers_keep_their_bits(small_net, images):
    prepared = qat.prepare(small_net, images, narrow(first_last_bits=8))
    assert bits(prepared) == {
        "x": (None, "uint8"),
        "stem": ("int7", "uint4"),  # 8 bits, of which the target leaves 7
        "depthwise": ("int4", "uint4"),
        "point": ("int4", "uint4"),
        "add": (None, "uint4"),
        "pool": (None, "uint8"),  # what the last layer reads
        "fc": ("int7", "uint8"),
    }
    assert any(note.startswith("weights: 8 -> 7 bits") for note in prepared.plan.notes)
    assert quantizer_bits(prepared) == {
        "x_quantizer": 8,
        "stem.weight_quantizer": 7,
        "stem_norm.output_quantizer": 4,
        "depthwise.weight_quantizer": 4,
        "depthwise_norm.output_quantizer": 4,
        "point.weight_quantizer": 4,
        "point_norm.output_quantizer": 4,
        "add_quantizer": 4,
        "pool.output_quantizer": 8,
        "fc.weight_quantizer": 7,
        "fc.output_quantizer": 8,
    }


def test_sums_are_wide_where_no_product_reads_them(small_net, images):
    prepared = qat.prepare(small_net, images, narrow(sum_bits=8))
    outputs = {name: output for name, (_, output) in bits(prepared).items()}
    wide = {"point", "add", "fc"}  # go into the addition, the pooling, and nowhere
    assert outputs == {n: "uint8" if n in wide else "uint4" for n in outputs}


def test_sum_bits_never_narrow(small_net, images):
    assert set(quantizer_bits(qat.prepare(small_net, images, recipe(sum_bits=4))).values()) == {7, 8}


def test_patterns_change_weights_and_outputs_and_win(small_net, images):
    override = {
        "stem": {"weight": {"bits": 2}},
        "*": {"activation": {"bits": 6}},
        "point": {"weight": {"bits": 5, "quantizer": {"_target_": "qat.quantizers.LSQ"}}, "activation": {"bits": 3}},
    }
    prepared = qat.prepare(small_net, images, narrow(first_last_bits=8, override=override))
    found = bits(prepared)
    assert found["stem"] == ("int2", "uint6")
    assert found["point"] == ("int5", "uint3")
    assert found["x"] == (None, "uint6")
    assert found["fc"] == ("int7", "uint6")
    assert type(prepared.point.weight_quantizer) is LSQ
    assert type(prepared.stem.weight_quantizer) is ObservedFakeQuantize


def test_a_layer_may_have_one_scale_while_others_have_many(small_net, images):
    override = {"depthwise": {"weight": {"granularity": "per_tensor"}}}
    prepared = qat.prepare(small_net, images, recipe(override=override))
    assert prepared.depthwise.weight_quantizer.scale.shape == ()
    assert prepared.stem.weight_quantizer.scale.shape == (8,)
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared.eval())
    step = float(prepared.fc.output_quantizer.scale)
    with torch.no_grad():
        assert (integer(images) - prepared(images)).abs().max() < 1.5 * step


def test_patterns_that_match_nothing_fail_together(small_net, images):
    override = {"stm": {"weight": {"bits": 4}}, "add": {"weight": {"bits": 4}}, "fc": {"weight": {"bits": 4}}}
    with pytest.raises(
        PlacementError, match=r"(?s)match no operator.*'stm' for weight \(nearest: stem\).*'add' for wei"
    ):
        qat.prepare(small_net, images, recipe(override=override))


def test_what_stays_in_float_cannot_be_overridden(small_net, images):
    chosen = recipe(exclude=["stem"], override={"stem": {"weight": {"bits": 4}}})
    with pytest.raises(PlacementError, match="'stem' for weight"):
        qat.prepare(small_net, images, chosen)


def test_the_target_has_the_last_word(small_net, images):
    chosen = recipe(override={"point": {"weight": {"scheme": "affine"}}})
    with pytest.raises(ConfigError, match=r"weight\.scheme must be symmetric for target onnxruntime"):
        qat.prepare(small_net, images, chosen)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.body, self.first_head, self.second_head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = F.relu(self.body(F.relu(self.left(x) + self.right(x))))
        return self.first_head(x).mean((2, 3)), self.second_head(x).mean((2, 3))


def test_first_and_last_are_all_that_read_the_input_or_make_an_output(images):
    found = bits(qat.prepare(TwoHeads(), images, narrow(first_last_bits=8)))
    assert {name for name, (weight, _) in found.items() if weight == "int7"} == {
        "left", "right", "first_head", "second_head"
    }  # fmt: skip
    assert found["left"] == ("int7", "uint4")
    assert found["first_head"] == ("int7", "uint8")
    assert found["mean"] == (None, "uint8")  # the logits


def test_an_excluded_first_layer_hands_its_place_to_nobody(small_net, images):
    found = bits(qat.prepare(small_net, images, narrow(first_last_bits=8, exclude=["stem", "stem_norm"])))
    assert found["depthwise"][0] == "int4"


def test_a_resnet_keeps_narrow_operands_and_wide_sums(golden):
    model = build("resnet20", num_classes=10).eval()
    golden("resnet20-w3a3_lsq.plan.txt", str(qat.prepare(model, torch.randn(2, 3, 32, 32), "w3a3_lsq").plan))
