from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import qat
from qat.errors import CaptureError, ConfigError, PlacementError

PLACEMENTS = ("graph", "modules")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()


IMAGES = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_refused(placement, dtype):
    with pytest.raises(PlacementError, match=rf"parameters of {dtype}, 0\.weight.* model\.float\(\)"):
        qat.prepare(network().to(dtype), IMAGES.to(dtype), placement=placement)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_lazy_layers_are_refused(placement):
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(PlacementError, match=r"lazy layers, 0\.weight.* call the model once on an example"):
        qat.prepare(model, IMAGES, placement=placement)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")  # of scripting itself
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_torchscript_is_refused(placement):
    with pytest.raises(PlacementError, match=r"TorchScript.* prepare the module that it was made of"):
        qat.prepare(torch.jit.script(network()), IMAGES, placement=placement)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_compiled_model_is_prepared_as_the_model_it_was_made_of(placement):
    model = network()
    prepared = qat.prepare(torch.compile(model), IMAGES, placement=placement)
    assert prepared.plan.model == "Sequential"
    qat.fake_quant(prepared, enabled=False)
    assert set(model.state_dict()) <= set(prepared.state_dict())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")  # its own
@pytest.mark.parametrize(
    "norm", [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm]
)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_computed_weights_are_refused_unless_they_stay_in_float(norm, placement):
    model = network()
    norm(model[0])
    with pytest.raises(PlacementError, match=r"computes weights.* in 0 .*remove_parametrizations\(layer, 'weight'\)"):
        qat.prepare(model, IMAGES, placement=placement)


def test_a_weight_that_is_made_plain_again_is_taken():
    model = network()
    parametrizations.weight_norm(model[0])
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    prepared = qat.prepare(model, IMAGES)
    assert prepared(IMAGES).shape == (2, 2)


def test_pruning_is_no_computed_weight():
    model = network()
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.remove(model[0], "weight")
    qat.prepare(model, IMAGES)


class AnyNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, *xs):
        return self.fc(sum(xs))


def test_any_number_of_inputs_is_for_placement_by_modules():
    inputs = (torch.randn(2, 3), torch.randn(2, 3))
    with pytest.raises(CaptureError, match=r"forward takes any number of inputs as \*xs.* placement=modules"):
        qat.prepare(AnyNumber(), inputs)
    assert qat.prepare(AnyNumber(), inputs, placement="modules")(*inputs).shape == (2, 2)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_attention_without_a_batch_says_so(placement):
    with pytest.raises(CaptureError, match=r"shape \(2, 4\): attention needs a batch, \[N, L, E\]"):
        qat.prepare(Attends(), torch.randn(5, 4), placement=placement)


def test_classes_that_stay_whole_need_a_graph():
    with pytest.raises(
        ConfigError, match=r"leaf_modules .*placement=modules makes none; leave layers in float with exc"
    ):
        qat.prepare(network(), IMAGES, placement="modules", leaf_modules=(nn.ReLU,))
