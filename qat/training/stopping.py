"""Stopping: Ctrl-C or SIGTERM in `fit` ends it behind a whole step, with a checkpoint that goes on from there.

a signal            is noted; a second one ends training at once
behind the step     position and random state are taken down, where the optimizer has stepped and the epoch goes on
before the next     the checkpoint is written, and `fit` ends in `Interrupted`
in validation       the same, at its next batch; the resumed run validates again, from the beginning
before training     there is nothing to save, and `fit` ends at once

Resumed, the run ends as one that was never stopped, to the last bit: the checkpoint holds what those of Lightning lack
(position.py). One kind of data goes on with other batches: a loader that shuffles by the global generator and reads
ahead in workers, in the first epoch of a fit, where Lightning starts it before a callback can look. Of several
processes all stop behind the same step.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import get_worker_info

from qat.functional.across import any_across, several
from qat.training.interruption import STOPPED, Interrupted
from qat.training.position import at, go_to, load_left_over, loader_states, randomness, set_randomness
from qat.training.processes import first

logger = logging.getLogger(__name__)

KEY = "qat_position"  # of the entry in it
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def stop_safely(trainer: pl.Trainer) -> None:
    """Give a Trainer the callback, unless it has it."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if not any(isinstance(callback, SafeStop) for callback in callbacks):
        callbacks.append(SafeStop())


class SafeStop(pl.Callback):
    """Ctrl-C and SIGTERM end `fit` with a checkpoint, beside those of the Trainer's `ModelCheckpoint`.

    `QuantizationAwareTraining` does this already; alone it serves any other training.
    """

    def __init__(self) -> None:
        self._number: int | None = None  # of the signal that was seen
        self._training = False
        self._before: dict[int, Any] = {}  # handlers
        self._epoch: dict[str, Any] | None = None  # random state when it began
        self._anew = False
        self._behind: dict[str, Any] | None = None  # what was taken down behind a step
        self._validated: dict[str, Any] | None = None  # the same, where a validation may follow
        self._resumed: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier fit."""
        self._give_back()
        self._before = {}
        self._number = self._epoch = self._behind = self._validated = self._resumed = None
        self._training = self._anew = False

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take what a checkpoint of a stopped run knows."""
        self._resumed = checkpoint.get(KEY)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals, before loaders start processes."""
        self._take_signals()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where the run was stopped, or where any other checkpoint was taken inside an epoch."""
        self._take_signals()  # once more: Lightning has put its own handler of SIGTERM before this one
        self._training = True
        load_left_over(trainer)
        if (state := self._resumed) is None:
            return
        self._epoch, self._anew, self._resumed = state["epoch"], state["anew"], None
        go_to(trainer, pl_module, state["epoch"], anew=state["anew"])
        set_randomness(trainer, state["behind"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what loaders start from; in the first epoch of a fit they were started before."""
        self._anew = self._epoch is not None
        self._epoch = randomness(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take down where training is, if it is to stop and can be resumed here."""
        if several():
            asked = any_across(self._number is not None, trainer.strategy.root_device)
            self._number = self._number or (signal.SIGTERM if asked else None)
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._number is not None and stepped and not trainer.is_last_batch:
            self._behind = self._position(trainer)
        # a validation draws when its loaders start, and it may be stopped without a warning
        every = trainer.val_check_batch
        validates = trainer.is_last_batch or (every is not None and (batch_idx + 1) % every == 0)
        self._validated = self._position(trainer) if validates else None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if the step before took down where."""
        if self._behind is not None:
            self._stop(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop, if asked; processes do not all have as many batches here, and stop behind the next step."""
        if self._number is not None and self._training and not several():
            self._behind = self._validated or self._position(trainer)
            self._stop(trainer, validating=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back; a stop that was asked for in the last step comes behind training, before export."""
        self._give_back()
        if self._number is not None:
            self._behind = self._position(trainer)
            self._stop(trainer, rewrite=False)
        if first() and (path := _path(trainer)) is not None:
            path.unlink(missing_ok=True)  # of an earlier stop: all is done

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back; where the next batch could not be read after a stop was asked for, save before."""
        self._give_back()
        if self._behind is not None and not several():
            self._save(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back, wherever fit ended."""
        self._give_back()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """The handler of both signals.

        Processes of loaders have it too, as a Ctrl-C in a terminal reaches them: they live until the step is done.
        """
        worker = get_worker_info() is not None
        if not (self._training or worker):  # not yet; or fit is over, and Lightning put this one back
            before = self._before[number]
            signal.signal(number, before)
            if callable(before):
                before(number, frame)
            else:
                os.kill(os.getpid(), number)
            return
        if self._number is not None:
            raise Interrupted(self._number)
        self._number = number
        if not worker:
            name = signal.Signals(number).name
            logger.warning("%s: training stops behind this step; once more stops at once", name)

    def _position(self, trainer: pl.Trainer) -> dict[str, Any]:
        state = {"epoch": self._epoch, "anew": self._anew, "behind": randomness(trainer)}
        return {"loaders": loader_states(trainer), "state": state}

    def _stop(self, trainer: pl.Trainer, *, validating: bool = False, rewrite: bool = True) -> None:
        self._save(trainer, validating=validating, rewrite=rewrite)
        assert self._number is not None
        raise Interrupted(self._number)

    def _save(self, trainer: pl.Trainer, *, validating: bool = False, rewrite: bool = True) -> None:
        state, self._behind = self._behind, None
        assert state is not None
        assert self._number is not None
        name, path = signal.Signals(self._number).name, _path(trainer)
        if path is None:
            logger.warning("stopped by %s; nothing is saved, because this Trainer writes no checkpoints", name)
            return
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if rewrite:
            at(checkpoint, loaders=state["loaders"], validating=validating)
        checkpoint[KEY] = state["state"]
        trainer.strategy.save_checkpoint(checkpoint, path)
        trainer.strategy.barrier()
        if first():
            logger.warning("stopped by %s at step %d; ckpt_path=%s goes on there", name, trainer.global_step, path)

    def _take_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
            return
        for number in SIGNALS:
            before = signal.signal(number, self._asked)
            self._before.setdefault(number, before)

    def _give_back(self) -> None:
        self._training = False
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._asked:
                signal.signal(number, handler)


def _path(trainer: pl.Trainer) -> Path | None:
    """Where the checkpoint goes; None for a Trainer that writes none."""
    folder = getattr(trainer.checkpoint_callback, "dirpath", None)
    return Path(folder) / STOPPED if folder and not trainer.fast_dev_run else None  # type: ignore[attr-defined]
