"""What a run of static quantization is to do, as values: all that the config says before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

import qat
from qat.models import ModelSource
from qat.parity import Tolerance
from qat.pipeline.aids import read_callbacks, read_distillation, require_scales
from qat.pipeline.analysis import Analysis, read_analysis
from qat.pipeline.callback import build_callback
from qat.pipeline.helpers import Helpers, read_helpers
from qat.pipeline.processes import joined
from qat.pipeline.resumption import checkpoint_of
from qat.pipeline.source import read_source, with_preprocessing
from qat.pipeline.stopwatch import Stopwatch
from qat.pipeline.wanted import read_recipe, read_targets, read_tolerance
from qat.target import joint
from qat.training import QuantizationAwareTraining
from qat.training.distillation import Distillation


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run.

    Attributes:
        cfg: the config, as all processes have it.
        clock: seconds of each stage.
        targets: where the model will run; the artefact is for the first.
        analysis: what is measured to choose widths; None for nothing.
        callback: of quantization-aware training.
        aids: the callbacks beside it.
        source: where the float model comes from.
        distill: the share of the float model in the loss; None for labels alone.
        helpers: what improves a calibrated model without training it.
        tolerance: how far the artefact may be from the model.
    """

    cfg: DictConfig
    clock: Stopwatch
    targets: list[qat.Target]
    analysis: Analysis | None
    callback: QuantizationAwareTraining
    aids: list[pl.Callback]
    source: ModelSource
    distill: Distillation | None
    helpers: Helpers
    tolerance: Tolerance

    @property
    def target(self) -> qat.Target:
        """What the numerics are those of: the first target, on a grid that all of them have."""
        return joint(self.targets)

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.cfg.run_dir)

    @property
    def trains(self) -> bool:
        """Whether anything is trained in fake-quant."""
        return bool(self.cfg.qat.epochs > 0)

    @property
    def checkpoint(self) -> str | None:
        """What the training goes on from; None for a start."""
        return checkpoint_of(self.cfg, "qat") if self.trains else None

    def with_recipe(self, recipe: qat.QuantRecipe) -> Job:
        """The same, for the recipe that an analysis has chosen."""
        return replace(self, callback=build_callback(self.cfg, recipe, self.target))


def read_job(cfg: DictConfig, clock: Stopwatch) -> Job:
    """What `cfg` asks for; starts the other processes, where there are several.

    Raises:
        ConfigError: what contradicts itself, or cannot be had.
    """
    recipe, targets = read_recipe(cfg), read_targets(cfg)
    target = joint(targets)
    analysis, recipe = read_analysis(cfg, recipe, target), recipe.settled()
    callback, aids = build_callback(cfg, recipe, target), read_callbacks(cfg, recipe)
    source = read_source(cfg)
    distill, helpers = read_distillation(cfg, source), read_helpers(cfg)
    require_scales(cfg, recipe)
    cfg = with_preprocessing(cfg, source)
    tolerance = read_tolerance(cfg)
    return Job(
        cfg=joined(cfg), clock=clock, targets=targets, analysis=analysis, callback=callback, aids=aids, source=source,
        distill=distill, helpers=helpers, tolerance=tolerance,
    )  # fmt: skip
