"""From a float model to a proven int8 artefact: `python train.py model=mobilenet_v2 qat.epochs=5`."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig

from qat.errors import QatError
from qat.pipeline import run


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    """Run once; returns the objective of a sweep, the int8 artefact's top-1 in percent."""
    try:
        return run(cfg)["top1"]["int8"]
    except QatError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
