"""From a float model to a proven int8 artefact: `python train.py model=mobilenet_v2 qat.epochs=5`."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run once; returns the objectives of a sweep, None for a job of a sweep that failed: the others go on."""
    from qat.pipeline.command import train  # here: --help, --cfg and the shell's completion do without torch

    return train(cfg)


if __name__ == "__main__":
    main()
