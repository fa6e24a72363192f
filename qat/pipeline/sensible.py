"""Every value of the config, looked at before work begins: a wrong one is refused now, not hours later.

Sections that a stage reads by itself at the start (quant, target, verify, model, parts of qat) stay with it; the others
are built here, on a layer of one weight where they need a network, and let go of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from qat.errors import ConfigError, QatError
from qat.pipeline.processes import trainer_of
from qat.report.objective import require_objectives
from qat.settings import build, check, plain, reading
from qat.training import Classifier
from qat.training.classifier import parameter_groups
from qat.training.strategy import require_float_scales

STEPS = 8  # of the schedule that is tried
SECTIONS = ("model", "data", "quant", "target", "float", "qat", "trainer", "logger", "verify", "evaluate", "latency")
MOST = 4096  # devices of a machine, and machines
LARGEST_SEED = 2**32 - 1  # of NumPy

Check = tuple[Callable[[Any], bool], str]


def whole(least: int, most: float = math.inf) -> Check:
    """An integer of at least, and at most, so much."""
    limits = f">= {least}" if most == math.inf else f"in {least} .. {most}"
    return (lambda v: type(v) is int and least <= v <= most), f"an integer {limits}"


def text(*, empty: bool = False) -> Check:
    """A name or a path."""
    return (lambda v: isinstance(v, str) and "\0" not in v and (empty or bool(v.strip()))), "a path"


def or_null(check: Check) -> Check:
    """The same, or null."""
    holds, words = check
    return (lambda v: v is None or holds(v)), f"{words}, or null"


def number(least: float) -> Check:
    """A finite number of at least so much."""
    return (
        lambda v: isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) and v >= least
    ), f"a number >= {least:g}"


def positive() -> Check:
    """A finite number above 0."""
    holds, _ = number(0)
    return (lambda v: holds(v) and v > 0), "a number > 0"


FLAG: Check = (lambda v: isinstance(v, bool)), "true or false"
NAMES: Check = (
    lambda v: isinstance(v, Mapping) and all(isinstance(name, str) for pair in v.items() for name in pair),
    "a mapping of names such as {linear: fc}",
)
TARGETS: Check = (lambda v: isinstance(v, list)), "a list such as [openvino]"
VALUES: Mapping[str, Check] = {
    "seed": whole(0, LARGEST_SEED),
    "cache_dir": text(),
    "run_dir": text(),
    "ckpt_path": or_null(text()),
    "init_from": or_null(text()),
    "init_rename": or_null(NAMES),
    "init_reset_head": FLAG,
    "init_strict": FLAG,
    "also": TARGETS,
    "quiet": FLAG,
    "report": FLAG,
    "latency.batch_size": whole(1),
    "latency.repeats": whole(1),
    "evaluate.artifact": or_null(text()),
    "float.epochs": whole(0),
    "float.freeze_backbone": FLAG,
    "trainer.enable_progress_bar": FLAG,
}
TRAINER: Mapping[str, Check] = {  # which Lightning would believe, or find out in the middle of training
    "devices": ((lambda v: not isinstance(v, int) or -1 <= v <= MOST), f"at most {MOST}"),
    "num_nodes": whole(1, MOST),
    "accumulate_grad_batches": whole(1),
    "log_every_n_steps": whole(0),
    "num_sanity_val_steps": whole(-1),
    "gradient_clip_val": or_null(number(0)),
    "limit_train_batches": or_null(number(0)),
    "limit_val_batches": or_null(positive()),
    "deterministic": ((lambda v: isinstance(v, bool) or v == "warn"), "true, false or warn"),
}


def require_sensible(cfg: DictConfig) -> None:
    """Raise `ConfigError` for a value that no stage can use."""
    for section in SECTIONS:
        if not isinstance(plain(cfg, section), Mapping):
            raise ConfigError(f"{section} needs a section, got {plain(cfg, section)!r}; see conf/{section}")
    for key, (holds, words) in VALUES.items():
        if not holds(value := plain(cfg, key)):
            raise ConfigError(f"need {key} to be {words}, got {value!r}")
    for key, (holds, words) in TRAINER.items():
        if key in cfg.trainer and not holds(value := plain(cfg, f"trainer.{key}")):
            raise ConfigError(f"need trainer.{key} to be {words}, got {value!r}")
    with reading("objective"):
        require_objectives(plain(cfg, "objective"))
    with reading("data"):
        build(cfg, "data")
    with reading("logger"):
        check(cfg, "logger", "name")
    with reading("trainer"):
        require_float_scales(str(trainer_of(cfg).precision))
    for section in ("float", "qat"):
        with reading(section):
            _require_trainable(cfg, section)


def _require_trainable(cfg: DictConfig, section: str) -> None:
    """Build what trains a network, for a layer of one input, and take a step."""
    settings = cfg[section]
    layer = Classifier(
        nn.Linear(1, 2),
        num_classes=2,
        optimizer=build(cfg, f"{section}.optimizer"),
        scheduler=build(cfg, f"{section}.scheduler") if settings.scheduler else None,
        label_smoothing=settings.label_smoothing,
        aux_weight=settings.aux_weight,
        scale_lr=settings.get("scale_lr"),
    )
    groups = parameter_groups(layer.model)
    if layer.scale_lr is not None:
        groups.append({"params": [nn.Parameter(torch.ones(2))], "weight_decay": 0.0, "lr": layer.scale_lr})
    try:
        optimizer, scheduler, _ = layer.optimization(groups, STEPS)
        layer.model(torch.ones(2, 1)).sum().backward()
        optimizer.step()
        if scheduler is not None and not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
        finite = all(math.isfinite(group["lr"]) for group in optimizer.param_groups)
    except QatError:
        raise
    except Exception as error:  # whatever an optimizer, or a schedule, of anyone's raises at what it cannot use
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"{section}.optimizer and {section}.scheduler: {reason}. See conf/{section} for the values they take"
        ) from error
    if not finite:
        raise ConfigError(f"the learning rates of {section}.optimizer and {section}.scheduler are not finite numbers")
