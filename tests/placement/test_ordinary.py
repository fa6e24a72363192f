"""Forwards as people write them, each from calibration to onnxruntime."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qat

WITHIN = 1.5  # steps: a product on a tie is one integer off


class Net(nn.Module):
    """`forward(net, x)`, with the modules given."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.own = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.own(self, x)


def conv(i, o):
    return nn.Conv2d(i, o, 3, padding=1)


NETS = {
    "the same activation twice": (
        lambda s, x: s.h((s.b(s.r(y := s.a(x))) + s.c(s.r(y))).mean((2, 3))),
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 8), "r": nn.ReLU(), "h": nn.Linear(8, 5)},
    ),
    "the same pooling and sigmoid twice": (
        lambda s, x: s.h(
            (s.b(F.avg_pool2d(y := s.a(x), 2)) * y.mean((2, 3), keepdim=True).sigmoid()
             + s.c(F.avg_pool2d(y, 2)) * y.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3))
        ),
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "c": conv(8, 8), "h": nn.Linear(8, 5)},
    ),
    "chunks of the input in the batch": (
        lambda s, x: s.h(torch.cat(s.b(torch.cat(x.chunk(2, 3), 0)).mean((2, 3)).chunk(2, 0), 1)),
        lambda: {"b": conv(3, 8), "h": nn.Linear(16, 5)},
    ),
    "chunks of a curve in another order": (
        lambda s, x: s.h(s.b(torch.cat(F.gelu(s.a(x)).chunk(2, 1)[::-1], 1)).mean((2, 3))),
        lambda: {"a": conv(3, 8), "b": conv(8, 8), "h": nn.Linear(8, 5)},
    ),
    "divided by the batch size": (
        lambda s, x: s.h(s.a(x).relu().mean((2, 3))) / x.size(0),
        lambda: {"a": conv(3, 8), "h": nn.Linear(8, 5)},
    ),
    "scaled by a size that stays": (
        lambda s, x: s.h((s.a(x) * x.shape[-1] ** -0.5).relu().mean((2, 3))),
        lambda: {"a": conv(3, 8), "h": nn.Linear(8, 5)},
    ),
    "BatchNorm over tokens": (
        lambda s, x: s.l2(s.n(s.l(x.flatten(2)))).mean(1),
        lambda: {"l": nn.Linear(64, 3), "n": nn.BatchNorm1d(3), "l2": nn.Linear(3, 5)},
    ),
    "BatchNorm over fewer tokens than features": (
        lambda s, x: s.l2(s.n(s.l(x.flatten(2)))).mean(1),
        lambda: {"l": nn.Linear(64, 6), "n": nn.BatchNorm1d(3), "l2": nn.Linear(6, 5)},
    ),
    "input by keyword": (
        lambda s, x: s.h(F.relu(s.n(input=s.a(input=x))).mean((2, 3))),
        lambda: {"a": conv(3, 8), "n": nn.BatchNorm2d(8), "h": nn.Linear(8, 5)},
    ),
    "an input that is written into": (
        lambda s, x: s.h(s.a(x.sub_(0.5).div_(0.25)).relu().mean((2, 3))),
        lambda: {"a": conv(3, 8), "h": nn.Linear(8, 5)},
    ),
    "pooling with places": (
        lambda s, x: s.h(s.u(*s.p(s.a(x))).mean((2, 3))),
        lambda: {
            "a": conv(3, 8), "p": nn.MaxPool2d(2, return_indices=True), "u": nn.MaxUnpool2d(2), "h": nn.Linear(8, 5),
        },
    ),
    "two poolings that print alike": (
        lambda s, x: s.f1(s.p1(x[..., :7, :7]).flatten(1)) + s.f2(s.p2(x[..., :7, :7]).flatten(1)),
        lambda: {
            "p1": nn.AvgPool2d(2, padding=1, count_include_pad=False), "p2": nn.AvgPool2d(2, padding=1),
            "f1": nn.Linear(48, 5), "f2": nn.Linear(48, 5),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
@pytest.mark.runtime
def test_from_calibration_to_the_runtime(name, images, randomize, tmp_path):
    forward, modules = NETS[name]
    model = randomize(Net(forward, **modules())).eval()
    before = images.clone()
    prepared = qat.prepare(model, images[:2].clone())
    qat.calibrate(prepared, [images])
    integer = qat.convert(prepared.eval())
    suffix = ".pt2" if name == "pooling with places" else ".onnx"  # ONNX has no MaxUnpool of these sizes
    target = "torch" if suffix == ".pt2" else "onnxruntime"
    artifact = qat.export(integer, tmp_path / f"model{suffix}", target=target)
    report = qat.verify(prepared, artifact, [images, images[:3]])
    assert max(s.max_steps for s in report.stages if s.gated) < WITHIN
    assert torch.equal(images, before)


def test_one_value_per_channel_is_refused_as_torch_does():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    prepared = qat.prepare(model, torch.randn(4, 3, 2, 2))
    qat.calibrate(prepared, [torch.randn(4, 3, 2, 2)])
    with pytest.raises(ValueError, match=r"Expected more than 1 value per channel .* drop_last=True"):
        prepared.train()(torch.randn(1, 3, 2, 2))
    assert all(torch.isfinite(value).all() for value in prepared.state_dict().values())
