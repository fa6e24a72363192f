"""Every `logger=` of the config is built, takes metrics, and leaves them below the run's folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qat.settings import build

CONF = Path(__file__).parent.parent.parent / "conf"
EXTRA = {"csv": "json", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}  # package that it needs


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages
def test_a_logger_takes_metrics(tmp_path, name):
    if importlib.util.find_spec(EXTRA[name]) is None:
        pytest.skip(f"the extra `{name}` is not installed")
    offline = ["logger.offline=true"] if name == "wandb" else []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"logger={name}", f"run_dir={tmp_path}", *offline])
    logger = build(cfg, "logger", name="qat")
    logger.log_metrics({"train/loss": 0.5}, step=1)
    logger.finalize("success")
    assert any(path.is_file() for path in tmp_path.rglob("*"))


def test_every_logger_of_the_config_is_tried():
    assert {path.stem for path in (CONF / "logger").glob("*.yaml")} == set(EXTRA)
