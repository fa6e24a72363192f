"""ResNet for 32 x 32 images (He et al. 2015, arXiv:1512.03385, section 4.2), shortcuts of option A.

    depth = 6n + 2:   conv 3x3, 16   then n blocks each of    16 x 32 x 32,  32 x 16 x 16,  64 x 8 x 8
                      then the mean over positions and one linear layer `fc`

    block(x) = relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))
    shortcut(x)[:, c] = x[:, c - p, ::2, ::2] for p <= c < p + C_in, else 0;  p = (C_out - C_in) / 2

A block that changes nothing about the shape has the identity as its shortcut. No shortcut has parameters, and
every ReLU is a module of its own, so that each call site has one name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.errors import ConfigError

WIDTHS = (16, 32, 64)


class PadShortcut(nn.Module):
    """Every second pixel, with zero channels added on both sides; has no parameters."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        """Splits the `out_channels - in_channels` zero channels evenly over front and back."""
        super().__init__()
        self.pad = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H / 2), ceil(W / 2)]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))

    def extra_repr(self) -> str:
        """Channels added on each side, for `print(model)`."""
        return f"pad={self.pad}"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int) -> None:
        """The stride is 2 where `channels`, those of the output, differ from `in_channels`."""
        super().__init__()
        changes = in_channels != channels
        stride = 2 if changes else 1
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = PadShortcut(in_channels, channels) if changes else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class ResNetCifar(nn.Module):
    """ResNet of depth 6n + 2 for small images; 0.27 M parameters at depth 20."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        """Kaiming initialisation; the head's bias is zero.

        Args:
            depth: Layers with weights: 20, 32, 44, 56, ...
            num_classes: Width of the head `fc`.

        Raises:
            ConfigError: The depth is not 6n + 2 with n >= 1, or there is no class.
        """
        if depth < 8 or (depth - 2) % 6:
            raise ConfigError(f"need depth = 6n + 2 with n >= 1 (20, 32, 44, 56), got depth={depth}")
        if num_classes < 1:
            raise ConfigError(f"need num_classes >= 1, got {num_classes}")
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="linear")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> logits [N, num_classes]; made for H = W = 32, takes any size."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10) -> ResNetCifar:
    """ResNet-20: 269,722 parameters with 10 classes."""
    return ResNetCifar(20, num_classes)


def resnet32(num_classes: int = 10) -> ResNetCifar:
    """ResNet-32: 464,154 parameters with 10 classes."""
    return ResNetCifar(32, num_classes)


def resnet44(num_classes: int = 10) -> ResNetCifar:
    """ResNet-44: 658,586 parameters with 10 classes."""
    return ResNetCifar(44, num_classes)


def resnet56(num_classes: int = 10) -> ResNetCifar:
    """ResNet-56: 853,018 parameters with 10 classes."""
    return ResNetCifar(56, num_classes)
