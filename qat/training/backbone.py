"""Transfer learning: the head of a network trains, the backbone stays as it is, BatchNorm statistics included."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytorch_lightning as pl
from torch import nn

from qat.errors import ConfigError
from qat.training.preparation import prepare_before_setup

BatchNorm = nn.modules.batchnorm._BatchNorm


class FrozenBackbone(pl.Callback):
    """Freezes everything but the head during `fit`; afterwards every parameter is as trainable as before.

    Args:
        head: Names of parameters of `pl_module.model` that train (`qat.models.head_of`).

    Raises:
        ConfigError: when `fit` starts and a name is no parameter of the network.
    """

    def __init__(self, head: Collection[str]) -> None:
        self.head = frozenset(head)
        self._frozen: list[nn.Parameter] = []
        self._norms: list[nn.Module] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Freeze before the optimizers are built, which take trainable parameters only."""
        if stage != "fit":
            return
        prepare_before_setup(pl_module)  # the norms of the network that trains
        network = pl_module.model
        assert isinstance(network, nn.Module)
        parameters = dict(network.named_parameters())
        if not self.head or not self.head <= parameters.keys():
            strange = ", ".join(map(repr, sorted(self.head - parameters.keys()))) or "none"
            raise ConfigError(
                f"the head to train must be parameters of {type(network).__name__}, got {strange}; "
                "qat.models.head_of finds their names"
            )
        self._frozen = [p for name, p in parameters.items() if name not in self.head and p.requires_grad]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._norms = [
            m for n, m in network.named_modules() if isinstance(m, BatchNorm) and f"{n}.weight" not in self.head
        ]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Keep BatchNorm in evaluation mode; Lightning calls `train()` after every validation."""
        for norm in self._norms:
            norm.eval()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let everything train again."""
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        for norm in self._norms:
            norm.train(pl_module.training)
        self._frozen, self._norms = [], []
