"""A weight as its quantizer sees it: what is stored, with and without a BatchNorm folded in."""

from __future__ import annotations

import pytest
import torch

import qat
from qat.convert import folded
from qat.placement.seen import seen_weights


@pytest.mark.parametrize("placement", ["graph", "modules"])
@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_per_tensor"])
def test_the_integers_are_those_that_are_stored(small_net, images, recipe, placement):
    prepared = qat.prepare(small_net, images[:2], recipe=recipe, placement=placement)
    qat.calibrate(prepared, [images])
    seen = seen_weights(prepared)
    assert list(seen) == ["stem", "depthwise", "point", "fc"]
    for name, weight in seen.items():
        folds = recipe == "w8a8_per_tensor" and placement == "graph" and name != "fc"
        assert (weight.norm is not None) == folds
        norm = getattr(prepared, f"{name}_norm") if folds else None
        assert torch.equal(weight.integers(), folded(weight.layer, norm)[0])


def test_integers_times_scale_over_factor_are_the_weight_that_trains(small_net, images):
    prepared = qat.prepare(small_net, images[:2], recipe="w8a8_per_tensor")
    qat.calibrate(prepared, [images])
    for weight in seen_weights(prepared).values():
        norm = weight.norm
        used = weight.layer.quantized_weight(*(() if norm is None else (norm.weight, norm.running_var)))
        torch.testing.assert_close(weight.integers() * weight.scale() / weight.factor(), used)
