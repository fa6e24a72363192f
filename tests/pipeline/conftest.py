"""What runs are tested on: their config, as the command composes it, and a float checkpoint to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from qat.models import resnet20

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest) -> Callable[..., DictConfig]:
    """`config(folder, *overrides)`: of a run in `folder`, with the settings QUICK of the module of the test."""

    def composed(folder: Path, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(
                "config", [*request.module.QUICK, f"run_dir={folder}", f"cache_dir={folder}/cache", *overrides]
            )

    return composed


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-20."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("float") / "float.pt"
    torch.save(resnet20().state_dict(), path)
    return path
