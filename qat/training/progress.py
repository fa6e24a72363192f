"""What a terminal shows of a run: Lightning's rich bar with top-1 and phase, and a bar for every other stage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import Progress, track

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


class StageBar(pl.Callback):
    """On a terminal, a bar for a validation outside of training, gone when it ends.

    Args:
        stage: what it does, e.g. `measuring top-1`.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._bar: Progress | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show it."""
        console = Console(stderr=True)
        if console.is_terminal and trainer.is_global_zero:
            self._bar = Progress(console=console, transient=True)
            self._bar.add_task(self.stage, total=sum(float(n) for n in trainer.num_val_batches))
            self._bar.start()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Go on."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take it away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Take it away."""
        self.on_validation_end(trainer, pl_module)


@contextmanager
def working(stage: str) -> Iterator[None]:
    """On a terminal, the name of a stage of which nobody knows how long it takes, while it lasts."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(stage):
        yield


def followed(batches: Iterable[T], stage: str, total: int | None = None) -> Iterable[T]:
    """The same batches; on a terminal with a bar that shows how many are done, and the time left.

    Args:
        batches: of a stage.
        stage: what it does, e.g. `calibrating`.
        total: how many there are; None where `len` says it.
    """
    console = Console(stderr=True)
    return track(batches, stage, total, console=console, transient=True, disable=not console.is_terminal)
