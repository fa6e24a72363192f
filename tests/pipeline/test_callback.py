from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from torch import nn

import qat
from qat.errors import ConfigError
from qat.pipeline.callback import build_callback
from qat.training import QuantizationAwareTraining

CONF = Path(qat.__file__).parent.parent / "conf"


def callback(*overrides: str) -> QuantizationAwareTraining:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: Any = compose("config", ["model=resnet20", "run_dir=/nowhere", *overrides])
    return build_callback(cfg, qat.QuantRecipe.parse("w8a8"), qat.Target.parse("onnxruntime"))


def test_classes_that_stay_whole_are_given_by_their_paths() -> None:
    assert callback().preparation.leaf_modules == ()
    assert callback("leaf_modules=[torch.nn.LSTM]").preparation.leaf_modules == (nn.LSTM,)


@pytest.mark.parametrize("path", ["torch.nn.Nothing", "nowhere.Class", "torch.nn"])
def test_a_path_that_is_no_class(path: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"leaf_modules has '{path}', which is no class: .*Give package\.module\.Class"
    ):
        callback(f"leaf_modules=[{path}]")
