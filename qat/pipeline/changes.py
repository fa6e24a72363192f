"""In what a run's settings differ from those of an earlier one in its folder, as far as results depend on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from qat.pipeline.aids import OF_TRAINING
from qat.training.interruption import BEGUN

READING = ("num_workers", "download", "keep_mb", "cache_dir")  # of data: where images come from, and how fast
# nothing of these is in the results
ELSEWHERE = (
    "run_dir", "ckpt_path", "cache_dir", "quiet", "report", "objective", "trainer.enable_progress_bar",
    *(f"data.{key}" for key in READING),
)  # fmt: skip
UNREAD = {"ptq": ("qat.epochs",), "analyze": tuple(f"qat.{key}" for key in ("epochs", *OF_TRAINING))}  # by a task
FILLED_IN = "data."  # by a run, where it was null: the weights' own preprocessing


def begun_with(folder: Path) -> DictConfig | None:
    """The settings of the run in a folder; None where it has none that can be read."""
    try:
        found = OmegaConf.load(folder / BEGUN)
    except (OSError, yaml.YAMLError):
        return None
    return found if isinstance(found, DictConfig) and found else None


def changed(cfg: DictConfig, folder: Path) -> list[str]:
    """The keys in which settings differ from those of the run in a folder, of all that results depend on."""
    before, here = begun_with(folder) or OmegaConf.create(), cfg.copy()
    for key in ("run_dir", "cache_dir"):  # which other settings lie in
        here[key] = before.get(key)
    now, then = (OmegaConf.to_container(c, resolve=True) for c in (here, before))
    left = (*ELSEWHERE, *UNREAD.get(str(cfg.task), ()))
    return [key for key in differences(now, then) if key not in left]


def differences(now: Any, then: Any, path: str = "") -> list[str]:
    """The keys, with their path, in which settings differ from those of an earlier run, which filled in some."""
    if isinstance(now, dict) and isinstance(then, dict):
        paths = {key: f"{path}.{key}".lstrip(".") for key in (*now, *then)}
        return [found for key, name in paths.items() for found in differences(now.get(key), then.get(key), name)]
    return [] if now == then or (now is None and path.startswith(FILLED_IN)) else [path]
