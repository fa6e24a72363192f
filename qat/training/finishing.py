"""What callbacks do to a network when training ends, done before it is delivered.

trained             on_train_end of each, in their order; then on_fit_end, where the network is exported
nothing to train    a checkpoint of a training that had ended: Lightning leaves on_train_end out, and the first
on_fit_end would export what the others have yet to finish
"""

from __future__ import annotations

import pytorch_lightning as pl


class Finishing(pl.Callback):
    """A callback that has the last word on weights or statistics, whether or not anything was trained."""

    def finish(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say it; once in a fit, later calls change nothing."""
        raise NotImplementedError

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish."""
        self.finish(trainer, pl_module)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish where a checkpoint had nothing left to train."""
        self.finish(trainer, pl_module)


def finish_all(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Let each callback of a Trainer finish, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Finishing):
            callback.finish(trainer, pl_module)
