"""What improves a calibrated model without training it, from `qat`: before it is prepared, and after ranges are set.

equalize          weights of consecutive layers share their range          qat.equalize
keep_zeros        what pruning has set to zero stays zero                  qat.keep_zeros
adaround          each weight learns whether to round up or down           qat.adaround
correct_biases    the mean error of rounding goes out of the biases        qat.correct_biases
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from qat.adaround import adaround
from qat.bias_correction import correct_biases
from qat.equalize import equalize
from qat.errors import ConfigError, unknown_name
from qat.keep_zeros import keep_zeros
from qat.pipeline.wanted import read_recipe
from qat.placement.prepared import PreparedModel
from qat.quantizers import DoReFa
from qat.settings import plain, reading

log = logging.getLogger(__name__)
Batch = tuple[Tensor, Tensor]
Follow = Callable[[Iterable[Any], str, int], Iterable[Any]]  # items of a stage, its name, how many


def _as_they_are(items: Iterable[Any], stage: str, total: int) -> Iterable[Any]:
    return items


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How AdaRound learns.

    Args:
        images: calibration images that it learns from, kept in memory with what each layer reads.
        iterations: steps for each layer.

    Raises:
        ConfigError: a value out of range.
    """

    images: int = 1024
    iterations: int = 1000

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        for name, value in (("images", self.images), ("iterations", self.iterations)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"need qat.adaround.{name} >= 1, a whole number, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Helpers:
    """What a run does besides calibration and training; see the head of this file."""

    equalize: bool = False
    keep_zeros: bool = False
    rounding: Rounding | None = None
    correct_biases: bool = False

    def before(self, model: nn.Module, example: Tensor) -> nn.Module:
        """The float model to prepare."""
        if self.equalize:
            model, pairs = equalize(model, example)
            if not pairs:
                log.warning("qat.equalize has no effect: no two layers of %s follow each other", type(model).__name__)
        return keep_zeros(model) if self.keep_zeros else model

    def calibrated(
        self, prepared: PreparedModel, batches: Iterable[Batch], count: int, follow: Follow = _as_they_are
    ) -> None:
        """Work on a model with ranges, in place.

        Args:
            prepared: the model.
            batches: calibration images; a loader, which can be read again.
            count: calibration batches, for what takes no number of its own.
            follow: shows how far a stage is.
        """
        if self.rounding is not None:
            kept = list(first(batches, self.rounding.images))
            seen = sum(len(images) for images, _ in kept)
            if seen < self.rounding.images:
                log.warning("qat.adaround.images is %d, and there are %d", self.rounding.images, seen)
            moved = adaround(
                prepared, kept, iterations=self.rounding.iterations, max_batches=len(kept),
                follow=lambda layers: follow(layers, "AdaRound", len(layers)),
            )  # fmt: skip
            share = 100 * sum(moved.values()) / len(moved)
            log.info("AdaRound: %.1f %% of the weights round the other way, mean of %d layers", share, len(moved))
        if self.correct_biases:
            chosen = follow(islice(iter(batches), count), "correcting biases", count)
            correct_biases(prepared, chosen, max_batches=count)


def first(batches: Iterable[Batch], images: int) -> Iterator[Batch]:
    """The first so many images, in batches."""
    for x, y in batches:
        yield x[:images], y[:images]
        images -= len(x)
        if images <= 0:
            return


@reading("qat")
def read_helpers(cfg: DictConfig) -> Helpers:
    """The helpers that `qat` asks for.

    Raises:
        ConfigError: a wrong value or key; what needs a graph, without one.
    """
    for key in ("equalize", "keep_zeros", "correct_biases"):
        if not isinstance(cfg.qat[key], bool):
            raise ConfigError(f"need qat.{key}=true or false, got {cfg.qat[key]!r}")
    given, rounding = plain(cfg, "qat.adaround"), None
    if given is not None:
        if not isinstance(given, Mapping):
            raise ConfigError(f"qat.adaround needs a mapping such as {{images: 1024, iterations: 1000}}, got {given!r}")
        known = [f.name for f in fields(Rounding)]
        for key in given:
            if key not in known:
                raise ConfigError(unknown_name("key of qat.adaround", str(key), known))
        rounding = Rounding(**given)
        recipe = read_recipe(cfg)
        kind = recipe.weight.quantizer.resolve()
        if inspect.isclass(kind) and issubclass(kind, DoReFa):
            raise ConfigError(
                f"recipe {recipe.name} rounds a tanh of its weights, and qat.adaround rounds weights themselves; use a "
                "recipe with LSQ or observed ranges, such as w4a8, or qat.adaround=null"
            )
    along = [f"qat.{key}" for key in ("equalize", "adaround", "correct_biases") if cfg.qat[key] not in (None, False)]
    if along and cfg.placement == "modules":
        raise ConfigError(
            f"{' and '.join(along)}: these go along the graph of the model, and placement=modules has none; leave them "
            "out, or use placement=graph"
        )
    return Helpers(
        equalize=cfg.qat.equalize,
        keep_zeros=cfg.qat.keep_zeros,
        rounding=rounding,
        correct_biases=cfg.qat.correct_biases,
    )
