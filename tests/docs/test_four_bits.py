"""The tutorial's keys are the settings of the recorded experiment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]


def settings(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("config", ["run_dir=/nowhere", *overrides])
    return {key: OmegaConf.to_container(cfg[key], resolve=True) for key in ("qat", "quant", "target", "model")}


def test_the_command_for_your_own_model_is_the_experiment() -> None:
    page = (ROOT / "docs" / "tutorials" / "four-bits.md").read_text()
    (command,) = re.findall(r"python (train\.py .*init_from=float\.pt quant=w4a4_lsq(?:.*\\\n)*.*)", page)
    given = [word for word in shlex.split(command.replace("\\\n", " "))[1:] if not word.startswith("init_from=")]
    assert settings(*given) == settings("experiment=cifar10_resnet20_w4a4_lsq")
