"""Small nets through prepare, calibrate, convert: what the runtimes are tested on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import qat
from qat.convert import OPS


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project; a residual whose sum stays linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.expand, self.expand_norm = nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide)
        self.depth, self.depth_norm = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), nn.BatchNorm2d(wide)
        self.project, self.project_norm = nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand_norm(self.expand(x)))
        y = F.relu6(self.depth_norm(self.depth(y)))
        return x + self.project_norm(self.project(y))


class Basic(nn.Module):
    """ResNet's block with a projection on the shortcut."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1, bias=False), nn.BatchNorm2d(out)
        self.short, self.short_norm = nn.Conv2d(channels, out, 1, stride=2, bias=False), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short_norm(self.short(x)))


class Tiny(nn.Module):
    """Stem, a max-pooling, blocks, mean over space, linear."""

    def __init__(self, *blocks: nn.Module, features: int) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(features, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.maxpool(F.relu(self.stem_norm(self.stem(x)))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "mobilenet": lambda: Tiny(Inverted(8), Inverted(8), features=8),
    "resnet": lambda: Tiny(Basic(8, 12), Basic(12, 16), features=16),
}


@pytest.fixture
def pictures() -> Tensor:
    """`[64, 3, 16, 16]` in [-1, 1]."""
    return torch.rand(64, 3, 16, 16) * 2 - 1


@pytest.fixture(params=sorted(NETS))
def net(request: pytest.FixtureRequest, randomize) -> nn.Module:
    """MobileNetV2's or ResNet's blocks, in evaluation mode, statistics as after training."""
    return randomize(NETS[request.param]()).eval()


@pytest.fixture
def trained(net, pictures) -> Callable[[str], qat.PreparedModel]:
    """`trained(target)`: the net, prepared for a target and calibrated."""

    def make(target: str) -> qat.PreparedModel:
        model = qat.prepare(net, pictures[:2], target=target)
        qat.calibrate(model, [pictures])
        return model.eval()

    return make


class Exact(fx.Interpreter):
    """An integer model in float64: sums and products of 8-bit integers without a rounding error.

    float32, which the reference in torch computes in, adds up in an order that depends on the batch size: one integer
    in thousands, whose value lies within 2e-5 of the middle between two, then falls to the other side.
    """

    def run_node(self, n: fx.Node) -> object:
        args = [self.env[a] if isinstance(a, fx.Node) else a for a in n.args]
        if n.target is OPS.dequantize_per_tensor.default:
            q, scale, zero = args[:3]
            return (q.double() - zero) * torch.tensor(scale).double()
        if n.target is OPS.dequantize_per_channel.default:
            q, scale, _, axis = args[:4]
            return q.double() * scale.double().view([-1 if i == axis else 1 for i in range(q.ndim)])
        if n.target is OPS.quantize_per_tensor.default:
            x, scale, zero, low, high, dtype = args
            return ((x / torch.tensor(scale).double()).round() + zero).clamp(low, high).to(dtype)
        return super().run_node(n)


@pytest.fixture
def exactly() -> Callable[[fx.GraphModule, Tensor], Tensor]:
    """`exactly(integer, x)`: what the integer model means."""
    return lambda integer, x: Exact(integer).run(x).float()
