from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader
from torchvision.models.googlenet import GoogLeNetOutputs
from torchvision.models.inception import InceptionOutputs

import qat
from qat.errors import ConfigError, NumericsError
from qat.training import Classifier
from qat.training.classifier import parameter_groups

Trainers = Callable[..., pl.Trainer]
sgd = partial(SGD, lr=0.1, weight_decay=0.5)


class Rates(pl.Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_metrics_are_those_of_the_whole_validation_split(
    trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=sgd, label_smoothing=0.1)
    (metrics,) = trainer().validate(module, loader, verbose=False)
    images, labels = (torch.cat(part) for part in zip(*loader, strict=True))
    with torch.no_grad():
        logits = module.eval()(images)
    assert metrics["val/top1"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert metrics["val/loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_biases_and_norms_do_not_decay(tiny_net: type[nn.Module]) -> None:
    net = tiny_net()
    decays, stays = parameter_groups(net)
    assert decays["params"] == [net.conv.weight, net.fc.weight]
    assert stays["weight_decay"] == 0.0
    assert {id(p) for p in stays["params"]} == {id(p) for p in (net.norm.weight, net.norm.bias, net.fc.bias)}


def test_a_frozen_parameter_is_left_out(tiny_net: type[nn.Module]) -> None:
    net = tiny_net().requires_grad_(False)
    net.fc.weight.requires_grad = True
    assert parameter_groups(net) == [{"params": [net.fc.weight]}]


@pytest.mark.parametrize(
    ("scheduler", "options", "changes"),
    [
        (None, {"max_epochs": 2}, []),
        (partial(CosineAnnealingLR), {"max_epochs": 2}, [1, 2, 3, 4, 5, 6, 7]),
        (partial(OneCycleLR, max_lr=0.2), {"max_epochs": 2}, [1, 2, 3, 4, 5, 6, 7]),
        (partial(CosineAnnealingLR), {"max_epochs": 2, "accumulate_grad_batches": 2}, [2, 4, 6]),
        (partial(MultiStepLR, milestones=[1]), {"max_epochs": 2}, [4]),
    ],
)
def test_rate_moves_with_what_it_is_planned_for(
    trainer: Trainers,
    tiny_net: type[nn.Module],
    loader: DataLoader[Any],
    scheduler: Any,
    options: dict[str, Any],
    changes: list[int],
) -> None:
    rates = Rates()
    module = Classifier(tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1, momentum=0.9), scheduler=scheduler)
    trainer(rates, **options).fit(module, loader, loader)
    assert [i for i in range(1, 8) if rates.seen[i] != rates.seen[i - 1]] == changes


def test_a_plan_for_the_whole_run_ends_where_the_run_ends(
    trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=sgd, scheduler=partial(CosineAnnealingLR))
    fitted = trainer(max_epochs=3)
    fitted.fit(module, loader, loader)
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_a_plan_needs_an_end(trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=sgd, scheduler=partial(CosineAnnealingLR))
    with pytest.raises(ConfigError, match=r"needs the number of steps, and the run has inf; set trainer.max_epochs"):
        trainer(max_epochs=-1).fit(module, loader, loader)


def test_nan_loss_in_float_training(trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]) -> None:
    class Poisoned(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 2:
                with torch.no_grad():
                    module.model.fc.weight[0, 0] = float("nan")

    module = Classifier(tiny_net(), num_classes=4, optimizer=sgd)
    with pytest.raises(NumericsError, match=r"nan at step 2; first not finite: the output of 'model\.fc' \(its weight"):
        trainer(Poisoned()).fit(module, loader, loader)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_label_smoothing_is_a_share(tiny_net: type[nn.Module], value: float) -> None:
    with pytest.raises(ConfigError, match=f"need 0 <= label_smoothing < 1, got {value}"):
        Classifier(tiny_net(), num_classes=4, optimizer=sgd, label_smoothing=value)


def test_predict_gives_logits(trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]) -> None:
    module = Classifier(tiny_net(), num_classes=4, optimizer=sgd)
    logits: list[Tensor] = trainer().predict(module, loader)  # type: ignore[assignment]
    assert [tuple(part.shape) for part in logits] == [(8, 4)] * 4


class WithAuxiliaries(nn.Module):
    """Three heads in training, one in evaluation, as GoogLeNet."""

    def __init__(self, net: nn.Module, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x: Tensor) -> Any:
        logits = self.net(x)
        return self.kind(logits, 2 * logits, -logits) if self.training else logits


@pytest.mark.parametrize(
    ("kind", "given", "weight"),
    [
        (GoogLeNetOutputs, None, 0.3),
        (GoogLeNetOutputs, 0.0, 0.0),
        (lambda *logits: InceptionOutputs(*logits[:2]), None, 0.4),
        (lambda *logits: {"logits": logits[0], "aux": logits[1]}, 0.7, 0.7),
    ],
)
def test_auxiliary_heads_join_the_loss(
    tiny_net: type[nn.Module], loader: DataLoader[Any], kind: Callable[..., Any], given: float | None, weight: float
) -> None:
    net = tiny_net()
    net.dropout.p = 0.0
    module = Classifier(WithAuxiliaries(net, kind), num_classes=4, optimizer=sgd, aux_weight=given)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]  # no Trainer here
    images, labels = next(iter(loader))
    loss = module.training_step((images, labels), 0)
    logits = net(images)
    heads = [2 * logits] if kind is not GoogLeNetOutputs else [2 * logits, -logits]
    expected = F.cross_entropy(logits, labels) + weight * sum(F.cross_entropy(head, labels) for head in heads)
    torch.testing.assert_close(loss, expected)


def test_auxiliary_heads_through_a_fit(trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]) -> None:
    module = Classifier(WithAuxiliaries(tiny_net(), GoogLeNetOutputs), num_classes=4, optimizer=sgd)
    trainer().fit(module, loader, loader)
    logits: list[Tensor] = trainer().predict(module, loader)  # type: ignore[assignment]
    assert [tuple(part.shape) for part in logits] == [(8, 4)] * 4


def test_a_model_that_returns_feature_maps(
    trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    module = Classifier(tiny_net().conv, num_classes=4, optimizer=sgd)
    with pytest.raises(ConfigError, match=r"Conv2d returns float32 \[8, 4, 8, 8\], which the loss cannot use"):
        trainer().fit(module, loader, loader)


def test_aux_weight_is_not_negative(tiny_net: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r"need aux_weight >= 0, got -1"):
        Classifier(tiny_net(), num_classes=4, optimizer=sgd, aux_weight=-1)


def test_trained_ranges_have_their_own_rate_and_do_not_decay(tiny_net: type[nn.Module]) -> None:
    prepared = qat.prepare(tiny_net(), torch.randn(2, 3, 8, 8), recipe="w4a4_lsq")
    steps = {id(p) for name, p in prepared.named_parameters() if name.endswith("quantizer.step")}
    assert len(steps) > 2
    together = parameter_groups(prepared)
    assert steps <= {id(p) for p in together[1]["params"]}
    *_, scales = apart = parameter_groups(prepared, scale_lr=0.003)
    assert ({id(p) for p in scales["params"]}, scales["lr"], scales["weight_decay"]) == (steps, 0.003, 0.0)
    count = len(list(prepared.parameters()))
    assert [sum(len(group["params"]) for group in groups) for groups in (together, apart)] == [count, count]


def test_rates_of_trained_ranges_fall_with_the_others(
    trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    module = Classifier(
        qat.prepare(tiny_net(), torch.randn(2, 3, 8, 8), recipe="w4a4_lsq"),
        num_classes=4, optimizer=sgd, scheduler=partial(CosineAnnealingLR), scale_lr=0.01,
    )  # fmt: skip
    fitted = trainer(max_epochs=2, limit_train_batches=1)
    fitted.fit(module, loader, loader)
    assert [g["initial_lr"] for g in fitted.optimizers[0].param_groups] == [0.1, 0.1, 0.01]
    assert fitted.optimizers[0].param_groups[2]["lr"] == pytest.approx(0.0, abs=1e-12)


def test_a_rate_for_ranges_that_none_has(tiny_net: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r"scale_lr=0.1 has no effect: no range of TinyNet is trained"):
        parameter_groups(tiny_net(), scale_lr=0.1)


def test_a_schedule_of_one_rate_and_a_rate_of_scales(
    trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    prepared = qat.prepare(tiny_net(), torch.randn(2, 3, 8, 8), recipe="w4a4_lsq")
    one_cycle = partial(OneCycleLR, max_lr=0.2)
    momentum = partial(SGD, lr=0.1, momentum=0.9)
    module = Classifier(prepared, num_classes=4, optimizer=momentum, scheduler=one_cycle, scale_lr=0.01)
    with pytest.raises(ConfigError, match=r"OneCycleLR sets one rate for all parameters, and scale_lr=0.01 another"):
        trainer().fit(module, loader, loader)


def test_a_negative_rate_of_scales(tiny_net: type[nn.Module]) -> None:
    with pytest.raises(ConfigError, match=r"need scale_lr >= 0, got -1"):
        Classifier(tiny_net(), num_classes=4, optimizer=sgd, scale_lr=-1)


def test_a_schedule_that_watches_the_validation_loss(
    trainer: Trainers, tiny_net: type[nn.Module], loader: DataLoader[Any]
) -> None:
    never_better = partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=1e9)
    module = Classifier(tiny_net(), num_classes=4, optimizer=sgd, scheduler=never_better)
    rates = Rates()
    trainer(rates, max_epochs=3).fit(module, loader, loader)
    assert list(dict.fromkeys(rates.seen)) == [0.1, 0.05, 0.025]
