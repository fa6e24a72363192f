"""Zeros of a pruned float model, after training, in the integers of the file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import qat
from qat.errors import PlacementError

LAYERS = ("stem", "depthwise", "point", "fc")


def baked(model: nn.Module, *, amount: float = 0.5) -> dict[str, Tensor]:
    """Zeros that nothing masks any more; where they are."""
    zeros = {}
    for name in LAYERS:
        layer = model.get_submodule(name)
        prune.random_unstructured(layer, "weight", amount)
        prune.remove(layer, "weight")
        zeros[name] = layer.weight == 0
    return zeros


def train(prepared: nn.Module, images: Tensor, *, steps: int = 6) -> None:
    qat.calibrate(prepared, [images])
    prepared.train()
    optimizer = torch.optim.Adam(prepared.parameters(), lr=0.05, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (prepared(images) - 1.0).square().mean().backward()
        optimizer.step()
    prepared.eval()


def integers(prepared: nn.Module) -> dict[str, Tensor]:
    buffers = dict(qat.convert(prepared).named_buffers())
    return {name: buffers[f"{name}.weight"] for name in LAYERS}


@pytest.mark.parametrize("recipe", ["w8a8", "w8a8_per_tensor", "w4a8_lsq", "w4a4_pact", "w4a4_dorefa", "w2a2_lsq"])
def test_zeros_are_zero_after_training(small_net: nn.Module, images: Tensor, recipe: str) -> None:
    zeros = baked(small_net)
    prepared = qat.prepare(qat.keep_zeros(small_net), images, recipe)
    before = prepared.point.weight.detach().clone()
    train(prepared, images)
    assert not torch.equal(prepared.point.weight, before)
    for name, q in integers(prepared).items():
        assert (q[zeros[name]] == 0).all(), name
        assert (prepared.get_submodule(name).weight[zeros[name]] == 0).all(), name


def test_without_it_they_are_trained_away(small_net: nn.Module, images: Tensor) -> None:
    zeros = baked(small_net)
    prepared = qat.prepare(small_net, images)
    train(prepared, images)
    assert (integers(prepared)["point"][zeros["point"]] != 0).float().mean() > 0.5


@pytest.mark.runtime
def test_the_file_is_as_sparse(small_net: nn.Module, images: Tensor, tmp_path: Path) -> None:
    zeros = baked(small_net, amount=0.75)
    model = qat.keep_zeros(small_net)
    prepared = qat.prepare(model, images)
    train(prepared, images)
    artifact = qat.export(qat.convert(prepared), tmp_path / "int8.onnx")
    stored = {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(artifact.path).graph.initializer}
    for name in LAYERS:
        (found,) = [w for key, w in stored.items() if key.startswith(f"{name}.weight") and w.ndim > 1]
        found = found.T if found.shape != zeros[name].shape else found  # a linear layer's, as MatMul reads it
        assert (found[zeros[name]] == 0).all(), name
        assert (found != 0).any(), name
    model(images).sum().backward()  # its weights are products now, which a deep copy refuses
    report = qat.verify(prepared, artifact, [(images, torch.zeros(16))], float_model=model)
    assert report.passed
    assert report.stages[0].name == "float"


@pytest.mark.parametrize("recipe", ["w4a8", "w8a8_per_tensor"])
def test_adaround_rounds_no_zero_up(small_net: nn.Module, images: Tensor, recipe: str) -> None:
    zeros = baked(small_net)
    prepared = qat.prepare(qat.keep_zeros(small_net), images, recipe)
    qat.calibrate(prepared, [images])
    moved = qat.adaround(prepared, [images], iterations=100, learning_rate=0.1)
    assert any(share > 0 for share in moved.values())
    for name, q in integers(prepared).items():
        assert (q[zeros[name]] == 0).all(), name


def test_equalization_keeps_masks(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()).eval()
    for at in (0, 2):
        prune.l1_unstructured(model[at], "weight", 0.5)
    masks = [model[at].weight_mask.clone() for at in (0, 2)]
    expected = model(images)
    even, pairs = qat.equalize(model, images)
    assert len(pairs) == 1
    assert not torch.equal(even[0].weight_orig, model[0].weight_orig)
    torch.testing.assert_close(even(images), expected, rtol=1e-4, atol=1e-5)
    prepared = qat.prepare(even, images)
    assert all(torch.equal(prepared.get_submodule(str(2 * i)).weight_mask, mask) for i, mask in enumerate(masks))


@pytest.mark.parametrize("quantize", [qat.quantize_dynamic, qat.quantize_weights])
def test_masked_models_are_quantized_without_ranges_too(small_net: nn.Module, images: Tensor, quantize) -> None:
    baked(small_net)
    assert torch.equal(quantize(qat.keep_zeros(small_net), images)(images), quantize(small_net, images)(images))


def test_masks_over_masks_and_the_argument_is_untouched(small_net: nn.Module) -> None:
    baked(small_net)
    twice = qat.keep_zeros(qat.keep_zeros(small_net))
    assert torch.equal(twice.fc.weight_mask, (small_net.fc.weight != 0).float())
    assert not hasattr(small_net.fc, "weight_mask")


def test_nothing_to_keep(small_net: nn.Module) -> None:
    with pytest.raises(PlacementError, match="no weight of SmallNet is zero, so there is nothing to keep; prune it"):
        qat.keep_zeros(small_net)
