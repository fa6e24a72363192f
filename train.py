"""From a float model to a proven int8 artefact: `python train.py model=mobilenet_v2 qat.epochs=5`."""

from __future__ import annotations

import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from qat.errors import QatError
from qat.pipeline import run
from qat.report.objective import objectives, require_objectives, write_failure


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """Run once; returns the objectives of a sweep, None for a job of a sweep that failed: the others go on."""
    try:
        wanted = require_objectives(cfg.objective)
        return objectives(run(cfg), wanted)
    except Exception as error:
        sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
        if not isinstance(error, QatError):
            if not sweeping:
                raise
            traceback.print_exc()
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        if not sweeping:
            raise SystemExit(1) from None
        write_failure(cfg.run_dir, error)
        return None


if __name__ == "__main__":
    main()
