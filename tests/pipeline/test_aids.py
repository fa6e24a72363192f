"""Training aids from the config: what reaches the loss, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from qat.errors import ConfigError
from qat.pipeline.aids import read_callbacks, read_distillation
from qat.pipeline.source import read_source
from qat.pipeline.wanted import read_recipe
from qat.training.distillation import Distillation

CONF = Path(__file__).parent.parent.parent / "conf"


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["model=resnet20", "run_dir=/nowhere", *overrides])


def read(*overrides: str) -> Distillation | None:
    cfg = config(*overrides)
    return read_distillation(cfg, read_source(cfg))


def test_none_unless_asked_for() -> None:
    assert read() is None
    assert read("qat.distill={}") == Distillation()
    assert read("qat.distill={temperature: 4, weight: 1}") == Distillation(temperature=4, weight=1)
    assert read("qat.distill={features: [layer1.0.add]}") == Distillation(features=("layer1.0.add",))


@pytest.mark.parametrize("experiment", ["w4a8", "w4a4_lsq", "w3a3_lsq", "w2a2_lsq"])
def test_experiments_at_few_bits_have_a_teacher(experiment: str) -> None:
    assert read(f"experiment=cifar10_resnet20_{experiment}", "data.path=d", "init_from=f.th") is not None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["qat.epochs=0", "qat.distill={}"], r"qat.distill has no effect without training: give qat.epochs"),
        (["float.epochs=0", "qat.distill={}"], r"qat.distill needs a float teacher, and the float model of this run"),
        (["qat.distill={temperatur: 4}"], r"unknown key of qat.distill 'temperatur'. Did you mean temperature"),
        (["qat.distill=logits"], r"qat.distill needs a mapping such as .*, got 'logits'"),
        (["qat.distill={feature_weight: 2}"], r"qat.distill.feature_weight has no effect without qat.distill.features"),
        (["qat.distill={features: layer1}"], r"need distill.features=\[NAME, ...\], names of the plan, got 'layer1'"),
        (["qat.distill={features: [a]}", "qat.equalize=true"], r"and qat.equalize scales what it computes on the way"),
        (["qat.distill={features: [a]}", "placement=modules"], r"and placement=modules has no graph; leave one"),
        (["qat.distill={weight: 2}"], r"need 0 < distill.weight <= 1, got 2"),
        (["qat.distill={weight: much}"], r"qat: .* See conf/qat for the values it takes"),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(*overrides)


def callbacks(*overrides: str) -> list[Any]:
    cfg = config("quant=w4a4_lsq", *overrides)
    return read_callbacks(cfg, read_recipe(cfg))


def test_callbacks_stand_where_they_are_asked_for() -> None:
    assert callbacks() == []
    (control,) = callbacks("qat.oscillation={damp: 0.1, freeze: 0.02, freeze_from: 0.04}")
    _, average, last = callbacks("qat.oscillation={damp: 0.1}", "qat.ema={decay: 0.99}", "qat.reestimate_bn=7")
    assert average.decay == 0.99
    assert last.batches == 7
    assert (control.damp, control.freeze, control.freeze_from, control.momentum) == (0.1, 0.02, 0.04, 0.01)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["qat.oscillation={damp: 1}", "qat.epochs=0"], r"qat.oscillation has no effect without training"),
        (["qat.mixup=0.2", "qat.epochs=0"], r"qat.mixup=0.2 has no effect without training: give .* or qat.mixup=0"),
        (["qat.mixup=-1"], r"need mixup >= 0, got -1"),
        (["qat.warmup=1"], r"need 0 <= warmup < 1, a share of the steps, got 1"),
        (["qat.warmup=soon"], r"qat: .* See conf/qat for the values it takes"),
        (["qat.reestimate_bn=-1"], r"need reestimate_bn >= 1, a number of batches, got -1"),
        (["qat.reestimate_bn=5", "qat.epochs=0"], r"qat.reestimate_bn=5 has no effect without training"),
        (["qat.activations_from=0.1", "qat.epochs=0"], r"qat.activations_from=0.1 has no effect without training"),
        (["qat.warmup=0.1", "qat.epochs=0"], r"qat.warmup=0.1 has no effect without training"),
        (["qat.ema={decay: 1}"], r"need 0 < ema.decay < 1, got 1"),
        (["qat.ema=0.9"], r"qat.ema needs a mapping such as {decay: 0.999}, got 0.9"),
        (["qat.ema={}", "qat.oscillation={freeze: 0.1}"], r"ema averages weights, and oscillation.freeze holds them"),
        (["qat.oscillation={}"], r"oscillation needs damp or freeze"),
        (["qat.oscillation={dampen: 1}"], r"unknown key of qat.oscillation 'dampen'. Did you mean damp"),
        (["qat.oscillation=damp"], r"qat.oscillation needs a mapping such as .*, got 'damp'"),
        (["qat.oscillation={damp: 1}", "quant=w4a4_dorefa"], r"recipe w4a4_dorefa rounds a tanh of its weights"),
        (["qat.oscillation={freeze: 0.1}", "quant=w4a8", "qat.freeze_observers_at=1", "qat.freeze_bn_at=1"],
         r"oscillation.freeze has no effect with freeze_observers_at=1"),
    ],
)  # fmt: skip
def test_callbacks_that_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        callbacks(*overrides)
