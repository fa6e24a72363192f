"""Every option of every group composes, and every `_target_` takes exactly the keys that its file gives."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import qat
from qat.component import Component
from qat.errors import ConfigError, QatError
from qat.settings import HYDRA_KEYS, build, plain

CONF = Path(__file__).parent.parent / "conf"
GROUPS = sorted(p.name for p in CONF.iterdir() if p.is_dir())
OPTIONS = [(g, f.stem) for g in GROUPS for f in sorted((CONF / g).glob("*.yaml"))]
FILLED = ["run_dir=/nowhere", "seed=0"]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=[*FILLED, *overrides])


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_its_components_take_their_keys(group, option):
    cfg = composed(f"{group}={option}")
    checked = 0
    for node in components(cfg):
        target = Component(path=node["_target_"]).resolve()
        parameters = inspect.signature(target).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())  # torchvision's builders
        for key in node:
            assert open_ended or key in HYDRA_KEYS or key in parameters, f"{node['_target_']} takes no {key}"
        checked += 1
    assert checked >= 5  # model, data, trainer, logger, optimizers


def components(node) -> list[DictConfig]:
    if not OmegaConf.is_dict(node):
        return []
    own = [node] if "_target_" in node else []
    return own + [c for key in node if not OmegaConf.is_missing(node, key) for c in components(node._get_node(key))]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_the_first_line_says_what_one_gets(group, option):
    lines = (CONF / group / f"{option}.yaml").read_text().splitlines()
    first = next(line for line in lines if not line.startswith("# @"))  # Hydra wants its package line before it
    assert first.startswith("# ")
    if group == "experiment":
        assert first.startswith("# python train.py experiment=")


@pytest.mark.parametrize("name", qat.presets.preset_names("quant"))
def test_a_recipe_name_means_the_same_in_python_and_on_the_command_line(name):
    assert qat.QuantRecipe.parse(plain(composed(f"quant={name}"), "quant")) == qat.QuantRecipe.parse(name)


@pytest.mark.parametrize("name", qat.presets.preset_names("target"))
def test_a_target_name_means_the_same_in_python_and_on_the_command_line(name):
    assert qat.Target.parse(plain(composed(f"target={name}"), "target")) == qat.Target.parse(name)


def test_a_key_that_nothing_takes_is_refused_with_the_nearest():
    cfg = composed("+trainer.max_epoch=3")
    with pytest.raises(ConfigError, match=r"Trainer takes no such key. Did you mean trainer.max_epochs"):
        build(cfg, "trainer")


def test_a_key_that_the_run_sets_is_refused():
    with pytest.raises(ConfigError, match=r"trainer.max_epochs is set by the run itself"):
        build(composed("+trainer.max_epochs=3"), "trainer", max_epochs=5)


def test_a_missing_value_names_its_key():
    with pytest.raises(ConfigError, match=r"data.root has no value; give one on the command line: data.root=VALUE"):
        build(composed("data=image_folder"), "data")


def test_what_a_component_raises_arrives_as_it_is():
    with pytest.raises(QatError, match="batch_size"):
        build(composed("data.batch_size=0"), "data")


def test_a_target_that_cannot_be_imported():
    cfg = composed("model._target_=my_package.MyNet")
    with pytest.raises(ConfigError, match=r"model._target_ 'my_package.MyNet' cannot be imported"):
        build(cfg, "model")


def test_a_recipe_refuses_unknown_keys():
    cfg = composed("+quant.weight.bit=4")
    with pytest.raises(ConfigError, match=r"unknown key of quant.weight 'bit'. Did you mean bits"):
        qat.QuantRecipe.parse(plain(cfg, "quant"))


def test_overrides_are_given_on_the_command_line():
    cfg = composed("quant=w4a4_lsq", "quant.override={layer1.*: {weight: {bits: 3}}, fc: {activation: {bits: 6}}}")
    recipe = qat.QuantRecipe.parse(plain(cfg, "quant"))
    assert recipe.override == {"layer1.*": {"weight": {"bits": 3}}, "fc": {"activation": {"bits": 6}}}
