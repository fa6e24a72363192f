"""`task=analyze`, and `quant.budget` of the other static tasks: measure what each width costs, and choose.

sensitivity.json   what was measured, and what a budget makes of it
sensitivity.svg    the same as a picture
override.yaml      the widths, for quant.override=FILE of a later run, and for this one when it is resumed
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

import qat
from qat.budget import TENSORS, Budget
from qat.data import ImageData
from qat.errors import CheckpointError, ConfigError
from qat.files import write_text
from qat.mixed import Mixture, front, halfway, mix, require_possible
from qat.pipeline.reporting import command_line
from qat.pipeline.resumption import MEASURED, OVERRIDE, checkpoint_of
from qat.pipeline.terminal import follow
from qat.placement.units import Unit
from qat.presets import read_mapping
from qat.report.sensitivity import sensitivity_svg, sensitivity_table
from qat.sensitivity import Score, Sensitivity, widths
from qat.settings import plain, reading
from qat.spec import MAX_BITS
from qat.training.processes import agreed, by_first

log = logging.getLogger(__name__)
PICTURE = "sensitivity.svg"


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What to measure, and under which budget to choose.

    Args:
        wanted: the recipe, with its budget.
        target: where the model will run.
        batches: of calibration images.
        weight_bits: widths of weights to choose from.
        activation_bits: widths of activations to choose from.
        everything: measure the recipe's own widths as well, one at a time and all but one, and show them.
        begun: the folder of an interrupted run, whose widths are taken as they are; None to measure.
    """

    wanted: qat.QuantRecipe
    target: qat.Target
    batches: int
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    everything: bool
    begun: Path | None = None

    def recipe(self, cfg: DictConfig, model: nn.Module, data: ImageData, folder: Path) -> qat.QuantRecipe:
        """The recipe with a width for every tensor; what was found is in `folder`."""
        if self.begun is not None:
            found = read_mapping(self.begun / OVERRIDE, "quant.override")
            if self.begun.resolve() != folder.resolve():
                by_first(lambda: write_text(folder / OVERRIDE, (self.begun / OVERRIDE).read_text()))  # type: ignore[operator]
            log.info("widths as in %s, which the run began with", self.begun / OVERRIDE)
            return replace(self.wanted, override=found, budget=None, budget_mb=None)

        example = next(iter(data.calibration_dataloader()))[0][:2]
        if self.wanted.limits is not None:
            require_possible(
                qat.prepare(model, example, self.wanted.settled(), self.target), self.wanted.limits,
                weight_bits=self.weight_bits, activation_bits=self.activation_bits,
            )  # fmt: skip

        def progress(units: Sequence[Unit], stage: str) -> Iterable[Unit]:
            return follow(cfg, units, stage, len(units))

        measured = qat.measure_sensitivity(
            model, data.calibration_dataloader(), self.wanted, self.target, max_batches=self.batches,
            weight_bits=self.weight_bits, activation_bits=self.activation_bits, under_recipe=self.everything,
            progress=progress,
        )  # fmt: skip
        limits = self.wanted.limits or halfway(measured)
        chosen = None if limits is None else agreed(mix(measured, limits))
        recipe = self.wanted.settled(chosen.override if chosen else None)
        told = tell(measured, chosen, front(measured) if self.everything else ())
        by_first(lambda: self._write(recipe, told, chosen, folder))
        return recipe

    def _write(self, recipe: qat.QuantRecipe, told: dict[str, Any], chosen: Mixture | None, folder: Path) -> None:
        write_text(folder / MEASURED, json.dumps(told, indent=2) + "\n")
        if (svg := sensitivity_svg(told)) is not None:
            write_text(folder / PICTURE, svg)
        if self.everything:
            Console().print(sensitivity_table(told))
        if chosen is None:
            log.warning("recipe %s fixes every width, so there is none to choose and no %s", recipe.name, OVERRIDE)
            return
        text = yaml.safe_dump(dict(recipe.override), sort_keys=False, default_flow_style=None)
        head = (
            f"# Widths that add the least noise to {told['model']}, recipe {recipe.name}, target {self.target.name}\n"
            f"# {chosen.budget}. For a later run: quant={recipe.name} quant.override={folder / OVERRIDE}\n"
        )
        write_text(folder / OVERRIDE, head + text)
        log.info("%s; %s", _in_words(chosen), folder / OVERRIDE)


@reading("analyze")
def read_analysis(cfg: DictConfig, recipe: qat.QuantRecipe, target: qat.Target) -> Analysis | None:
    """What the task or the recipe's budget asks to be measured; None for nothing.

    Raises:
        ConfigError: a value out of range, or a budget below the narrowest width.
        CheckpointError: a run to be resumed that began with no widths of its own, or under another budget.
    """
    everything, limits = str(cfg.task) == "analyze", recipe.limits
    if not everything and limits is None:
        if given := [key for key in command_line() if key.startswith("analyze.")]:
            log.warning("no effect of %s without task=analyze or quant.budget", ", ".join(given))
        return None
    if cfg.placement != "graph":
        raise ConfigError(
            f"placement={cfg.placement} gives all layers the same bits, so there are none to choose: leave out "
            f"{'task=analyze' if everything else 'quant.budget'}, or use placement=graph"
        )
    batches = cfg.analyze.batches
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < 1:
        raise ConfigError(
            f"need analyze.batches >= 1, a number of batches, got {batches!r}; 2 of 128 images are enough"
        )
    tried = {which: widths(f"analyze.{which}_bits", plain(cfg, f"analyze.{which}_bits")) for which in TENSORS}
    if limits is not None:
        _require_possible(limits, tried, target)
    checkpoint = checkpoint_of(cfg, "qat")
    return Analysis(
        wanted=recipe, target=target, batches=batches, weight_bits=tried["weight"],
        activation_bits=tried["activation"], everything=everything,
        begun=None if checkpoint is None or limits is None else _run_of(Path(checkpoint), limits),
    )  # fmt: skip


def _require_possible(limits: Budget, tried: dict[str, tuple[int, ...]], target: qat.Target) -> None:
    """Raise `ConfigError` for mean bits that no model could have, before anything is loaded."""
    for which in TENSORS:
        limit = limits.mean_bits(which)
        if limit is None:
            continue
        if which == "activation" and not target.narrow_activations and limit < MAX_BITS:
            raise ConfigError(
                f"quant.budget of {limit:g} for activations, and target {target.name} stores them in {MAX_BITS} bits: "
                f"the smallest that can be met is {MAX_BITS}. Limit weights alone, quant.budget={{weight: BITS}}"
            )
        if not tried[which] or limit < tried[which][0]:
            least = f"the smallest that can be met is {tried[which][0]}" if tried[which] else "there is no width"
            raise ConfigError(
                f"quant.budget of {limit:g} for {which}s, and analyze.{which}_bits={list(tried[which])}: {least}. "
                f"Raise the budget, or allow narrower widths with analyze.{which}_bits"
            )


def _run_of(checkpoint: Path, limits: Budget) -> Path | None:
    """The folder of the run that a checkpoint is from; None where that did not come as far as choosing widths."""
    folder = checkpoint.parent.parent
    if not checkpoint.is_file():  # whoever reads ckpt_path says so
        return None
    if not all((folder / name).is_file() for name in (OVERRIDE, MEASURED)):
        raise CheckpointError(
            f"ckpt_path {str(checkpoint)!r} is of a run without {OVERRIDE} and {MEASURED}, and its widths must be the "
            "same: resume it with the quant.override that it had, without quant.budget"
        )
    before = (json.loads((folder / MEASURED).read_text()).get("chosen") or {}).get("budget")
    if before != asdict(limits):
        raise CheckpointError(
            f"ckpt_path {str(checkpoint)!r} was trained under a budget of {before}, this run has {asdict(limits)}; "
            "resume with the same, or start from its float weights"
        )
    return folder


def tell(found: Sensitivity, chosen: Mixture | None, mixtures: Sequence[Mixture] = ()) -> dict[str, Any]:
    """What `sensitivity.json` holds: tensors from the most sensitive to the least."""
    picked = {} if chosen is None else chosen.widths
    rows = []
    for m in found.tensors:
        row: dict[str, Any] = {
            "name": m.unit.name, "tensor": m.unit.tensor, "size": m.unit.size, "bits": m.bits, "open": m.unit.open,
            "chosen_bits": picked[m.unit].grid_bits if m.unit in picked else None,
        }  # fmt: skip
        if m.alone is not None and m.without is not None:
            row |= {"alone": _score(m.alone), "all_but_one": _score(m.without)}
        row["widths"] = {str(at.grid_bits): _score(at.score) for at in m.widths}
        rows.append(row)
    for key in ("snr", "loss"):
        _rank(rows, key)
    rows.sort(key=lambda row: row.get("rank", {}).get("snr", 0))
    return {
        "model": found.model,
        "recipe": found.recipe.name,
        "target": found.target.name,
        "examples": found.examples,
        "float_loss": found.float_loss,
        "quantized": None if found.quantized is None else _score(found.quantized),
        "tensors": rows,
        "chosen": None if chosen is None else mixture_as_plain(chosen),
        "front": [mixture_as_plain(each) for each in mixtures],
    }


def _rank(rows: Sequence[dict[str, Any]], key: str) -> None:
    """1 for the tensor that alone costs most, by SNR or by loss; of rows that were measured under the recipe."""
    known = [row for row in rows if row.get("alone", {}).get(key) is not None]
    sign = 1.0 if key == "snr" else -1.0
    for i, row in enumerate(sorted(known, key=lambda row: sign * row["alone"][key])):
        row.setdefault("rank", {})[key] = i + 1


def mixture_as_plain(chosen: Mixture) -> dict[str, Any]:
    """A mixture in plain values, without its widths."""
    return {
        "budget": asdict(chosen.budget),
        "mean_bits": {which: chosen.mean_bits(which) for which in TENSORS},
        "weight_bytes": chosen.weight_bytes,
        "snr": chosen.snr,
    }


def _score(score: Score) -> dict[str, float | None]:
    return {"snr": score.snr, "loss": score.loss}


def _in_words(chosen: Mixture) -> str:
    means = [f"{which}s {bits:.2f}" for which in TENSORS if (bits := chosen.mean_bits(which)) is not None]
    return f"mean bits: {', '.join(means)}; weights {chosen.weight_bytes / 1e3:,.1f} kB; {chosen.snr:.1f} dB predicted"
