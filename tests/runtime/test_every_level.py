from __future__ import annotations

import itertools

import pytest
import torch

import qat


@pytest.mark.parametrize(
    ("target", "bits"),
    [*itertools.product(("onnxruntime", "openvino", "torch"), (2, 3, 5, 7)), ("executorch", 3)],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # imports
@pytest.mark.runtime
def test_every_level_of_a_grid_mirrored_where_gamma_is_negative(small_net, images, tmp_path, target, bits):
    """LSQ's own grid has one integer more below zero than above it; a mirrored channel has it above."""
    recipe = {**qat.presets.load_preset("quant", "w8a8"), "first_last_bits": None}
    recipe["weight"] = {**recipe["weight"], "bits": bits, "narrow": False}
    with torch.no_grad():
        small_net.point.weight.abs_().neg_()  # every channel has the lowest integer, if its scale is set by it
    prepared = qat.prepare(small_net, images[:2], recipe, target)
    qat.calibrate(prepared, [images])
    quantizer = prepared.get_submodule("point").weight_quantizer
    with torch.no_grad():
        quantizer.scale.mul_((2 ** (bits - 1) - 1) / 2 ** (bits - 1))
    integer = qat.convert(prepared.eval())
    stored, most = integer.get_submodule("point").weight, 2 ** (bits - 1)
    assert int(stored.min()) == -most
    assert int(stored.max()) == most
    artifact = qat.export(integer, tmp_path / f"model{qat.Target.parse(target).artifact}", target=target)
    assert qat.verify(prepared, artifact, [images]).stages[-1].max_steps < 1.5
    assert qat.audit.audit(artifact, integer=integer, require=()) == ()
