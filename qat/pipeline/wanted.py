"""What a run is asked for, as values: recipe, targets, tolerance."""

from __future__ import annotations

import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import qat
from qat import machine
from qat.parity import Tolerance
from qat.runtime import require_installed
from qat.settings import plain, reading

log = logging.getLogger(__name__)


def _listed() -> list[str]:
    """The names of `target=[A, B]`, of which Hydra would make one target, B's keys over A's; empty for `target=A`."""
    if not HydraConfig.initialized() or "target" in HydraConfig.get().runtime.choices:
        return []
    given = [o.partition("=")[2] for o in HydraConfig.get().overrides.task if o.startswith("target=[")]
    return [str(name) for name in OmegaConf.create(given[-1])] if given else []


@reading("quant")
def read_recipe(cfg: DictConfig) -> qat.QuantRecipe:
    """The recipe that `quant` describes."""
    return qat.QuantRecipe.parse(plain(cfg, "quant"))


@reading("target")
def read_targets(cfg: DictConfig) -> list[qat.Target]:
    """The target and those that the same training also serves, each able to run here."""
    targets = [qat.Target.parse(value) for value in (*(_listed() or [plain(cfg, "target")]), *plain(cfg, "also"))]
    for target in targets:
        require_installed(target)
        if target.needs_vnni and target.weight_bits > 7:
            message = machine.saturation(target.name, machine.cpu())
            if message:
                log.warning(message)
    return targets


@reading("verify")
def read_tolerance(cfg: DictConfig) -> Tolerance:
    """The limits of the parity gate."""
    return Tolerance(agreement=cfg.verify.agreement, top1=cfg.verify.top1, in_float=cfg.verify.in_float)
