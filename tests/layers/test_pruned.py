"""Masks of torch.nn.utils.prune: in a copy, in a prepared model, and what of them is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import qat
from qat.errors import PlacementError
from qat.layers import FakeQuantConv2d, pruned


def cut(model: nn.Module, *, amount: float = 0.5) -> nn.Module:
    """Prune every convolution and linear layer, and leave the model as training does: its weights have a gradient."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            prune.l1_unstructured(module, "weight", amount)
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    return model


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if name.endswith("weight_mask")}


def test_torch_cannot_copy_what_this_can(small_net: nn.Module, images: Tensor) -> None:
    cut(small_net)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(small_net)
    before = {name: tensor.clone() for name, tensor in small_net.state_dict().items()}
    hooks = [dict(m._forward_pre_hooks) for m in small_net.modules()]
    root = pruned.copied(small_net)
    assert torch.equal(root.fc.weight, small_net.fc.weight)
    assert isinstance(root.fc.weight, nn.Parameter)
    assert set(masks_of(root)) == set(masks_of(small_net))
    assert not any(root.get_submodule(n.rpartition(".")[0])._forward_pre_hooks for n in masks_of(root))
    assert [dict(m._forward_pre_hooks) for m in small_net.modules()] == hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in small_net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(root(images), small_net(images))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_switched_off_it_is_the_pruned_model(
    small_net: nn.Module, images: Tensor, training: bool, placement: str
) -> None:
    cut(small_net).train(training)
    prepared = qat.prepare(small_net, images, placement=placement)
    qat.fake_quant(prepared, enabled=False)
    assert torch.equal(prepared(images), copy.deepcopy(pruned.copied(small_net, masks=False))(images))
    assert "masks kept: 4; 50.0 % of the weights under them are zero" in prepared.plan.notes


def test_a_layer_masks_its_weight_and_its_gradient(weight_quantizer) -> None:
    layer = nn.Conv2d(2, 3, 3)
    mask = (torch.rand_like(layer.weight) > 0.5).float()
    layer.register_buffer("weight_mask", mask)
    fake = FakeQuantConv2d.from_float(layer, weight_quantizer(3))
    assert torch.equal(
        fake.quantized_weight() == 0,
        (layer.weight * mask).div(fake.weight_quantizer.scale.view(-1, 1, 1, 1)).round() == 0,
    )
    fake(torch.randn(1, 2, 5, 5)).square().sum().backward()
    assert (layer.weight.grad[mask == 0] == 0).all()
    assert (layer.weight.grad[mask == 1] != 0).all()


def test_pruned_after_it_was_prepared(small_net: nn.Module, images: Tensor) -> None:
    """By ModelPruning, say; and the optimizer has moved the weight since torch's hook ran."""
    prepared = qat.prepare(small_net, images)
    qat.calibrate(prepared, [images])
    prune.l1_unstructured(prepared.fc, "weight", 0.5)
    prepared(images).sum().backward()
    with torch.no_grad():
        prepared.fc.weight_orig.mul_(-1.0)
    assert torch.equal(prepared.fc.kept_weight(), prepared.fc.weight_orig * prepared.fc.weight_mask)
    integers = dict(qat.convert(prepared).named_buffers())["fc.weight"]
    assert torch.equal(integers, prepared.fc.weight_quantizer.integers(prepared.fc.kept_weight()))
    assert (integers[prepared.fc.weight_mask == 0] == 0).all()


def test_a_layer_that_stays_in_float_keeps_the_hook(small_net: nn.Module, images: Tensor) -> None:
    prepared = qat.prepare(cut(small_net), images, exclude=["stem"])
    assert not isinstance(prepared.stem, FakeQuantConv2d)
    assert {"weight_orig", "weight_mask"} <= set(dict(prepared.stem.state_dict()))
    qat.calibrate(prepared, [images])
    prepared.train()
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        prepared(images).square().sum().backward()
        optimizer.step()
    integer = qat.convert(prepared)
    assert torch.equal(integer.stem.weight, prepared.stem.weight_orig * prepared.stem.weight_mask)
    assert isinstance(integer.stem.weight, nn.Parameter)


def test_a_float_state_of_the_pruned_model_loads(small_net: nn.Module, images: Tensor) -> None:
    cut(small_net)
    prepared = qat.prepare(small_net, images)
    with torch.no_grad():
        for parameter in small_net.parameters():
            parameter.add_(0.1)
    own = prepared.state_dict()
    prepared.load_state_dict({**own, **{k: v for k, v in small_net.state_dict().items() if k not in own}})
    assert torch.equal(prepared.fc.weight, small_net.fc.weight_orig * small_net.fc.weight_mask)


class Tied(nn.Module):
    """Two layers with one weight, of which one is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.one(x)))


def test_a_tied_weight_stays_tied_and_whole() -> None:
    model, x = Tied(), torch.randn(3, 4)
    prune.l1_unstructured(model.two, "weight", 0.5)
    prepared = qat.prepare(model, x)
    assert prepared.one.weight is prepared.two.weight
    qat.fake_quant(prepared, enabled=False)
    assert torch.equal(prepared(x), model(x))


def test_masks_of_other_tensors_are_refused(small_net: nn.Module, images: Tensor) -> None:
    prune.l1_unstructured(small_net.fc, "bias", 0.5)
    prune.l1_unstructured(small_net.stem_norm, "weight", 0.5)
    with pytest.raises(PlacementError, match=r"stem_norm.weight, fc.bias: pruned, and masks are kept for weights of"):
        qat.prepare(small_net, images)
    prune.remove(small_net.fc, "bias")
    prune.remove(small_net.stem_norm, "weight")
    qat.prepare(small_net, images)
