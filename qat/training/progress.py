"""What a terminal shows of a run: Lightning's rich bar with top-1 and phase, and a bar for every other stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import track

from qat.training.callback import QuantizationAwareTraining

T = TypeVar("T")
TOP1 = "val/top1"


class TrainingBar(RichProgressBar):
    """Lightning's rich bar; top-1 in percent, and the phase of quantization-aware training."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What stands behind the bar."""
        found = dict(super().get_metrics(trainer, pl_module))
        found.pop("v_num", None)  # of the logger; the run folder says it
        if isinstance(top1 := found.pop(TOP1, None), float):
            found["top-1, %"] = f"{100.0 * top1:.2f}"
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, QuantizationAwareTraining) and callback.phase is not None:
                found["phase"] = str(callback.phase)
        return found


def followed(batches: Iterable[T], stage: str, total: int | None = None) -> Iterable[T]:
    """The same batches; on a terminal with a bar that shows how many are done, and the time left.

    Args:
        batches: of a stage.
        stage: what it does, e.g. `calibrating`.
        total: how many there are; None where `len` says it.
    """
    console = Console(stderr=True)
    return track(batches, stage, total, console=console, transient=True, disable=not console.is_terminal)
