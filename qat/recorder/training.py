"""The curves of one training, taken down while it runs, in at most `POINTS` points.

They travel with the checkpoint, so a resumed run shows the whole training. A phase that starts at the share p of N
steps starts at step ceil(p N): the first batch before which at least p of training is done.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from qat.placement.held import prepared_networks
from qat.placement.prepared import PreparedModel, quantizers
from qat.recorder.oscillation import STEPS, Oscillations
from qat.report import record
from qat.report.record import Phase, Training

POINTS = 400
RANGES = 40  # points of the scales: there are many quantizers


class TrainingRecorder(pl.Callback):
    """Writes `record/NAME.json` at every validation and at the end of `fit`.

    Args:
        run_dir: folder of the run.
        name: which training it is, `float` or `qat`.
        phases: share of training at which each phase starts, by its name; none for training without phases.
    """

    def __init__(self, run_dir: str | Path, name: str, phases: Mapping[str, float] | None = None) -> None:
        self.run_dir, self.name, self.phases = Path(run_dir), name, dict(phases or {})
        self.curves: dict[str, list[Any]] = {
            key: [] for key in ("steps", "loss", "lr", "val_steps", "val_loss", "val_top1", "range_steps")
        }
        self.scales: dict[str, list[float]] = {}
        self.trained: tuple[str, ...] = ()  # quantizers whose scale gradients move
        self.oscillating: dict[str, list[float]] = {}
        self._oscillations: dict[str, Oscillations] = {}  # by network

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"curves": self.curves, "scales": self.scales, "oscillating": self.oscillating, "trained": self.trained}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind what was recorded."""
        self.curves.update({key: list(values) for key, values in state_dict["curves"].items()})
        self.scales = {key: list(values) for key, values in state_dict["scales"].items()}
        self.oscillating = {key: list(values) for key, values in state_dict.get("oscillating", {}).items()}
        self.trained = tuple(state_dict.get("trained", ()))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take a point, when one is due."""
        step, total = trainer.global_step, _total(trainer)
        if step % max(1, total // POINTS) == 0:
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if isinstance(loss, Tensor) and step not in self.curves["steps"][-1:]:
                self.curves["steps"].append(step)
                self.curves["loss"].append(float(loss))
                self.curves["lr"].append(float(trainer.optimizers[0].param_groups[0]["lr"]))
        networks = prepared_networks(pl_module)
        if not networks:
            return
        every = max(1, total // RANGES)
        if -step % every < STEPS:
            for name, network in networks.items():
                self._oscillations.setdefault(name, Oscillations()).look(network, step)
        if step % every == 0 and step not in self.curves["range_steps"][-1:]:
            self._take_ranges(networks, step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take what validation found, and write."""
        if trainer.sanity_checking:
            return
        found = trainer.callback_metrics
        if "val/top1" in found and trainer.global_step not in self.curves["val_steps"][-1:]:
            self.curves["val_steps"].append(trainer.global_step)
            self.curves["val_loss"].append(float(found.get("val/loss", math.nan)))
            self.curves["val_top1"].append(100.0 * float(found["val/top1"]))
        self._write(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the rest."""
        self._write(trainer)

    @torch.no_grad()
    def _take_ranges(self, networks: Mapping[str, PreparedModel], step: int) -> None:
        begin = {name: f"{name}." if len(networks) > 1 else "" for name in networks}
        found = {begin[name] + path: q for name, network in networks.items() for path, q in quantizers(network).items()}
        self.trained = tuple(path for path, q in found.items() if q.trained and [*q.parameters()])
        means = torch.stack([q.scale.detach().abs().float().mean().cpu() for q in found.values()]).tolist()
        self.curves["range_steps"].append(step)
        for path, mean in zip(found, means, strict=True):
            self.scales.setdefault(path, []).append(mean)
        for name in networks:
            for layer, share in self._oscillations[name].shares().items():
                self.oscillating.setdefault(begin[name] + layer, []).append(share)

    def _write(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        total = _total(trainer)
        record.write(self.run_dir, Training(
            epochs=max(trainer.max_epochs or 0, 0), phases=phases_of(self.phases, total),
            **cast(dict[str, Any], {key: tuple(values) for key, values in self.curves.items()}),
            scales={path: tuple(values) for path, values in self.scales.items()},
            oscillating={name: tuple(values) for name, values in self.oscillating.items()}, trained=self.trained,
        ), self.name)  # fmt: skip


def phases_of(starts: Mapping[str, float], total: int) -> tuple[Phase, ...]:
    """Phases in steps of a training of `total` steps; those that would be empty are left out."""
    ordered = sorted(starts.items(), key=lambda item: item[1])
    begins = [math.ceil(share * total) for _, share in ordered]
    ends = [*begins[1:], total][: len(begins)]
    named = zip(ordered, begins, ends, strict=True)
    return tuple(Phase(name=name, start=start, end=end) for (name, _), start, end in named if end > start)


def _total(trainer: pl.Trainer) -> int:
    total = trainer.estimated_stepping_batches
    return int(total) if math.isfinite(total) and total > 0 else trainer.global_step
