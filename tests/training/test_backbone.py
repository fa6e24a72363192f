from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from qat.errors import ConfigError
from qat.training import Classifier, FrozenBackbone

HEAD = ("fc.weight", "fc.bias")


def test_only_the_head_moves(
    trainer: Callable[..., pl.Trainer], tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    """Over epochs with validation in between, after which Lightning puts every module into training mode again."""
    module = Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1, weight_decay=0.1))
    module.model.norm.weight.requires_grad_(False)  # was frozen before, and stays so
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    trainer(FrozenBackbone(HEAD), max_epochs=2).fit(module, loader, loader)
    moved = [key for key, value in module.model.state_dict().items() if not torch.equal(value, before[key])]
    assert moved == list(HEAD)
    assert [name for name, p in module.model.named_parameters() if not p.requires_grad] == ["norm.weight"]
    assert module.model.norm.training == module.training


def test_the_whole_trains_afterwards(
    trainer: Callable[..., pl.Trainer], tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1))
    trainer(FrozenBackbone(HEAD)).fit(module, loader, loader)
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    trainer().fit(module, loader, loader)
    assert not any(torch.equal(value, before[key]) for key, value in module.model.state_dict().items())


@pytest.mark.parametrize(("head", "words"), [(("classifier.weight",), "'classifier.weight'"), ((), "none")])
def test_a_head_that_is_not_there(
    trainer: Callable[..., pl.Trainer],
    tiny_net: type[nn.Module],
    loader: DataLoader[Any],
    head: tuple[str, ...],
    words: str,
) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1))
    with pytest.raises(ConfigError, match=rf"must be parameters of TinyNet, got {words}; qat\.models\.head_of finds"):
        trainer(FrozenBackbone(head)).fit(module, loader, loader)
