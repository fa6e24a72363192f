"""What helps training beside the labels, from `qat`; refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from omegaconf import DictConfig

from qat.errors import ConfigError, unknown_name
from qat.models import ModelSource
from qat.settings import plain, reading
from qat.training.distillation import Distillation


@reading("qat")
def read_distillation(cfg: DictConfig, source: ModelSource) -> Distillation | None:
    """The share of the float model in the loss; None to learn from labels alone.

    Raises:
        ConfigError: a wrong value or key; nothing is trained; the float model would be untrained itself.
    """
    given = plain(cfg, "qat.distill")
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"qat.distill needs a mapping such as {{temperature: 2.0, weight: 0.5}}, got {given!r}")
    known = [f.name for f in fields(Distillation)]
    for key in given:
        if key not in known:
            raise ConfigError(unknown_name("key of qat.distill", str(key), known))
    distill = Distillation(**given)
    if cfg.qat.epochs == 0:
        raise ConfigError("qat.distill has no effect without training: give qat.epochs, or qat.distill=null")
    if cfg.init_from is None and source.weights is None and cfg.float.epochs == 0:
        raise ConfigError(
            "qat.distill needs a float teacher, and the float model of this run is not trained: give init_from=FILE, "
            "model.weights=NAME or float.epochs, or qat.distill=null"
        )
    return distill
