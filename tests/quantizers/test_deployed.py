"""Every quantizer at every width: fake-quant, integer reference and onnxruntime compute the same.

With scales that are powers of two every product and sum is exact in float32, so "the same" is bit for bit. Ordinary
scales round somewhere, and a value near a tie may land on the next step.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat
from qat.component import Component
from qat.quantizers import LSQ, PACT, DoReFa, LSQPlus, ObservedFakeQuantize, TrainedFakeQuantize
from qat.runtime import load

PAIRS = [(ObservedFakeQuantize, ObservedFakeQuantize), (LSQ, LSQ), (LSQ, LSQPlus), (DoReFa, PACT)]
IDS = [f"{weight.__name__}-{activation.__name__}" for weight, activation in PAIRS]
SHARE_OF_FLIPS = 0.02  # of outputs, which a value anywhere before them may have tipped; untrained nets have wide steps


class Net(nn.Module):
    """Convolutions without BatchNorm, an activation on an affine grid, an addition, a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.fc = nn.Linear(8 * 36, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.fc(torch.flatten(F.relu6(x + self.body(x)), 1))


def recipe(weight, activation, bits: int) -> qat.QuantRecipe:
    base = qat.QuantRecipe.parse("w8a8")

    def tensor(which, quantizer):
        path = f"qat.quantizers.{quantizer.__name__}"
        return dataclasses.replace(base.tensor(which), bits=bits, quantizer=Component(path=path))

    weight, activation = tensor("weight", weight), tensor("activation", activation)
    return dataclasses.replace(base, name=f"w{bits}a{bits}", weight=weight, activation=activation)


def trained(model, x, chosen) -> qat.PreparedModel:
    """Calibrated and trained for two steps, so that weights and ranges left where they started."""
    prepared = qat.prepare(model, x, chosen)
    qat.calibrate(prepared, [x])
    optimizer = torch.optim.SGD(prepared.train().parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(prepared(x), torch.arange(len(x)) % 5).backward()
        optimizer.step()
    return prepared.eval()


@torch.no_grad()
def on_powers_of_two(prepared: qat.PreparedModel) -> qat.PreparedModel:
    """The same network with each scale rounded to a power of two."""
    for quantizer in qat.placement.quantizers(prepared).values():
        scale, zero_point = 2.0 ** quantizer.scale.log2().round(), quantizer.zero_point.clone()
        if isinstance(quantizer, TrainedFakeQuantize):
            quantizer.start(scale, zero_point)
        else:
            quantizer.scale.copy_(scale)
    return prepared


def flips(prepared: qat.PreparedModel) -> float:
    """Share of outputs that the integer model puts on another step."""
    x = torch.rand(128, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        steps = ((qat.convert(prepared)(x) - prepared(x)) / prepared.fc.output_quantizer.scale).round()
    return float((steps != 0).float().mean())


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_bit_for_bit_on_powers_of_two(pair, bits):
    x = torch.rand(16, 3, 8, 8) * 2 - 1
    prepared = on_powers_of_two(trained(Net(), x, recipe(*pair, bits)))
    assert {q.spec.bits for q in qat.placement.quantizers(prepared).values()} <= {bits, 7}
    beyond = torch.cat([x, 4 * x])
    with torch.no_grad():
        fake, reference = prepared(beyond), qat.convert(prepared)(beyond)
    assert torch.equal(fake, reference)
    assert len(fake.unique()) > 2


RUN = [(PAIRS[1], bits) for bits in range(2, 9)] + [(pair, 4) for pair in PAIRS if pair != PAIRS[1]]


@pytest.mark.parametrize(("pair", "bits"), RUN, ids=str)
@pytest.mark.runtime
def test_onnxruntime_too(pair, bits, tmp_path):
    x = torch.rand(16, 3, 8, 8) * 2 - 1
    prepared = on_powers_of_two(trained(Net(), x, recipe(*pair, bits)))
    artifact = qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    beyond = torch.cat([x, 4 * x])
    with torch.no_grad():
        fake = prepared(beyond)
    for optimize in (False, True):
        assert torch.equal(load(artifact, optimize=optimize)(beyond), fake)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("pair", PAIRS, ids=IDS)
def test_a_network_with_batchnorm(pair, bits, small_net, images):
    assert flips(trained(small_net.train(), images, recipe(*pair, bits))) <= SHARE_OF_FLIPS


@pytest.mark.parametrize("name", [n for n in qat.presets.preset_names("quant") if n != "w8a8"])
def test_every_recipe_trains_and_converts(name, small_net, images):
    assert flips(trained(small_net.train(), images, name)) <= SHARE_OF_FLIPS
