"""A small transformer over the patches of an image (Vaswani et al. 2017; patches as tokens: Dosovitskiy et al. 2020).

    x_t = W patch_t + p_t       t over (H / P)^2 patches of 3 P^2 values, p learned
    logits = fc(mean_t encoder(x)_t)

torch's own `nn.TransformerEncoder`, normalised first: the layers that most transformers in PyTorch are made of.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qat.errors import ConfigError

CHANNELS = 3


class PatchTransformer(nn.Module):
    """Square images [N, 3, H, H] to logits [N, classes]; 0.8 M parameters as it stands.

    Args:
        num_classes: Width of the head `fc`.
        image_size: H.
        patch_size: P, which divides H.
        width: Values in a token.
        depth: Encoder layers.
        heads: Of each attention; they divide the width.

    Raises:
        ConfigError: Patches that do not tile the image, heads that do not divide the width.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_size: int = 8,
        patch_size: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if patch_size < 1 or image_size % patch_size:
            raise ConfigError(f"need image_size divisible by patch_size, got {image_size} and {patch_size}")
        if heads < 1 or width % heads:
            raise ConfigError(f"need width divisible by heads, got {width} and {heads}")
        self.patch_size, self.tokens = patch_size, (image_size // patch_size) ** 2
        self.embed = nn.Linear(CHANNELS * patch_size**2, width)
        self.positions = nn.Parameter(torch.randn(self.tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, H] -> [N, classes]."""
        tokens = self.embed(patches(x, self.patch_size))  # [N, T, width]
        if tokens.shape[1] != self.tokens:
            raise ConfigError(
                f"images of {x.shape[-2]} x {x.shape[-1]} have {tokens.shape[1]} patches of {self.patch_size}, and the "
                f"model was built for {self.tokens}: set model.image_size, or data.image_size"
            )
        y = self.encoder(tokens + self.positions)
        logits: Tensor = self.fc(y.mean(1))
        return logits


def patches(x: Tensor, size: int) -> Tensor:
    """Square patches of an image, row by row: [N, C, H, W] -> [N, H W / size^2, C size^2]."""
    tiles = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [N, C, H / size, size, W / size, size]
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
