from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import qat
from qat.errors import CaptureError
from qat.placement.capture import capture
from qat.placement.tracer import BATCH, SizedTracer, of_batch

torch.fx.wrap("closed")


def closed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As torchvision's swin writes its attention: sizes, and weights passed to a closed function."""
    if x.shape[1] % 2:
        x = F.pad(x, (0, 0, 0, 1))
    n, length, _ = x.shape
    pairs = x.view(n, length // 2, 2, x.size(2)).reshape(n * (length // 2), 2, -1)
    return F.linear(pairs, weight, bias).view(n, length, -1)


class Closed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 6)
        self.register_buffer("scale", torch.full((1,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        y = closed(x, self.qkv.weight, self.qkv.bias)
        mask = x.new_zeros((y.shape[1], 6))
        mask[1:, :2] = 3.0
        return y * self.scale + mask


class BranchOnSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        height, _ = x.shape[-2:]
        if x.device.type == "meta":
            return x
        if height % 4:
            x = F.pad(x, (0, 0, 0, 4 - height % 4))
        noise = torch.zeros(x.shape[0], 4, 1, 1)
        first, *rest = [self.conv(x) + noise for _ in range(len(x.shape) - 2)]
        return (first + rest[0]).flatten(1)


@pytest.mark.parametrize("make", [Closed, BranchOnSize])
def test_sized_graphs_compute_the_model_at_every_batch_size(make):
    model = make().eval()
    shape = (5, 4) if make is Closed else (3, 10, 8)
    captured = capture(model, (torch.randn(2, *shape),), {})
    assert captured.sized
    module = fx.GraphModule(captured.root, captured.eval)
    for batch in (1, 2, 7):
        x = torch.randn(batch, *shape)
        assert torch.equal(module(x), model(x))


def test_a_closed_function_with_weights_is_opened_and_quantized():
    model, x = Closed().eval(), torch.randn(8, 5, 4)
    prepared = qat.prepare(model, x)
    qat.calibrate(prepared, [x])
    (op,) = (op for op in prepared.plan.ops if op.weight)
    assert op.kind == "linear"
    assert op.integer
    assert prepared.plan.notes[-1].startswith("forward branches on sizes")
    integer = qat.convert(prepared.eval())
    assert any(b.dtype is torch.int8 for b in integer.buffers())
    with torch.no_grad():
        step = float(prepared.get_submodule("linear_quantizer").scale)
        assert (integer(x) - prepared(x)).abs().max() <= 2 * step  # one flip, times the factor behind it


def test_a_plain_model_keeps_its_sizes_free():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    captured = capture(model, (torch.randn(2, 3, 8, 8),), {})
    assert not captured.sized


def test_numbers_of_the_batch_are_its_multiples():
    assert of_batch(BATCH)
    assert of_batch(64 * BATCH)
    assert not of_batch(0)
    assert not of_batch(64)
    assert not of_batch(True)


def test_a_branch_on_values_names_the_line():
    class Values(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(CaptureError, match=r"test_tracer.py:\d+: if x.sum\(\) > 0(.|\n)*not on the values of tensors"):
        capture(Values(), (torch.randn(2, 3),), {})


def test_factories_are_as_before_after_a_trace_that_fails():
    before = torch.zeros

    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("no")

    tracer = SizedTracer((), {"x": torch.zeros(2, 3)}, {})
    with pytest.raises(ValueError, match="no"), tracer.factories():
        tracer.trace(Fails())
    assert torch.zeros is before


class ActivationInside(nn.BatchNorm2d):
    """As timm's: BatchNorm, dropout and activation in one module."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.01)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )
        return self.act(self.drop(x))


def test_a_batchnorm_with_an_activation_inside_is_opened_and_folds(randomize):
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), ActivationInside(4))).eval()
    x = torch.randn(4, 3, 8, 8)
    prepared = qat.prepare(model, x)
    (op,) = (op for op in prepared.plan.ops if op.weight)
    assert op.fused == ("batchnorm 1", "relu")
    assert not prepared.plan.in_float
    qat.fake_quant(prepared, enabled=False)
    for mode in (False, True, False):
        assert torch.equal(prepared.train(mode)(x), model.train(mode)(x))
    assert all(torch.equal(b, dict(prepared.named_buffers())[n]) for n, b in model.named_buffers())
