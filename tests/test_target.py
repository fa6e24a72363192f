from __future__ import annotations

from dataclasses import replace

import pytest

from qat.errors import ConfigError
from qat.presets import load_preset, preset_names
from qat.target import Target, joint


@pytest.mark.parametrize("name", preset_names("target"))
def test_every_preset_parses(name):
    assert Target.parse(name).name == name
    assert Target.parse(load_preset("target", name)) == Target.parse(name)


def test_the_default_target_is_exact_without_vnni():
    target = Target.parse("onnxruntime")
    assert (target.weight_bits, target.activation_signed, target.opset) == (7, False, 21)
    assert "saturates" in target.weight_bits_reason
    assert Target.parse("onnxruntime_vnni").weight_bits == 8


def test_a_value_passes_through():
    target = Target(name="mine")
    assert Target.parse(target) is target


def test_unknown_name_key_and_runtime():
    with pytest.raises(ConfigError, match=r"unknown target 'onnxruntime_vni'\. Did you mean onnxruntime_vnni"):
        Target.parse("onnxruntime_vni")
    with pytest.raises(ConfigError, match=r"unknown key of a target 'weight_bit'\. Did you mean weight_bits"):
        Target.parse({"name": "mine", "weight_bit": 7})
    with pytest.raises(ConfigError, match=r"unknown runtime 'tflite'\. .*Known: .*onnxruntime.* torch"):
        Target(name="mine", runtime="tflite")
    with pytest.raises(ConfigError, match=r"openvino reads \.xml, got target\.artifact='\.onnx'"):
        Target(name="mine", runtime="openvino")


@pytest.mark.parametrize("bits", [1, 9])
def test_weight_bits_outside_the_storage(bits):
    with pytest.raises(ConfigError, match=rf"need 2 <= target.weight_bits <= 8, got {bits}"):
        Target(name="mine", weight_bits=bits)


def test_a_target_without_a_name_is_an_error_of_the_config():
    with pytest.raises(ConfigError, match="name"):
        Target.parse({"weight_bits": 7})


def test_one_training_serves_targets_that_agree_on_the_narrowest_weights():
    both = joint([Target.parse("onnxruntime_vnni"), Target.parse("openvino")])
    assert (both.name, both.weight_bits) == ("onnxruntime_vnni", 7)
    assert "saturates" in both.weight_bits_reason
    assert joint([Target.parse("openvino")]) == Target.parse("openvino")


def test_sums_and_curves_are_rounded_once_only_where_every_target_does():
    once = replace(Target.parse("openvino"), conv_curves=("silu",), linear_curves=("gelu", "tanh"))
    twice = Target.parse("onnxruntime")
    assert once.sums_round_once
    assert "gelu" in once.linear_curves
    assert not joint([once, twice]).sums_round_once
    assert joint([once, twice]).conv_curves == ()
    assert joint([once, once]) == once
    assert once.differences(twice) == ()
    assert twice.differences(once) == (
        "onnxruntime rounds a convolution before it is added to something, and openvino does not (sums_round_once)",
        "onnxruntime rounds a convolution before silu, and openvino does not (conv_curves)",
        "onnxruntime rounds a linear layer before gelu, tanh, and openvino does not (linear_curves)",
    )


def test_curves_are_taken_in_where_every_target_takes_them_in():
    openvino, inductor = Target.parse("openvino"), Target.parse("inductor")
    both = joint([openvino, inductor])
    assert (both.conv_curves, both.linear_curves) == (("silu", "hardswish"), ("gelu",))
    assert both.sums_round_once


def test_torch_computes_the_graph_of_any_target_that_has_its_grids():
    torch = Target.parse("torch")
    assert torch.differences(Target.parse("inductor")) == ()
    assert torch.differences(Target.parse("openvino")) == ()
    assert torch.differences(Target.parse("executorch")) != ()


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ("silu", r"target\.conv_curves is a list of names, \[silu, hardswish\] say; got 'silu'"),
        (["swish"], r"unknown name in target\.conv_curves 'swish'"),
    ],
)
def test_curves_that_are_no_list_or_unknown(curves, message):
    with pytest.raises(ConfigError, match=message):
        Target(name="mine", conv_curves=curves)


def test_targets_that_differ_say_in_what():
    signed = Target(name="mine", activation_signed=True)
    with pytest.raises(
        ConfigError, match=r"cannot serve onnxruntime, mine: activation_signed is True for mine and False"
    ):
        joint([Target.parse("onnxruntime"), signed])
    with pytest.raises(ConfigError, match="need at least one target"):
        joint([])


def test_wider_weights_than_a_target_adds_up():
    narrow, wide = Target.parse("onnxruntime"), Target.parse("onnxruntime_vnni")
    assert narrow.differences(wide) == ("weight_bits is 7 at most for onnxruntime, 8 for onnxruntime_vnni",)
    assert wide.differences(narrow) == ()
