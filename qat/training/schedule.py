"""The schedule of quantization-aware training: which phase a moment belongs to, a pure function of progress.

progress  0 ........... freeze_observers_at ........... freeze_bn_at ........... 1
phase        learn ranges       |        ranges frozen       |  ranges and BatchNorm statistics frozen

Progress is the share of training that is done *before* the batch it is asked for: k / n at batch k = 0 .. n - 1 of n.
So 0 freezes from the first batch on, and 1 never does. Activations may join later than weights: until then they stay in
float, and ranges learn them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from qat.errors import ConfigError


class Phase(StrEnum):
    """What training may move besides the weights; in the order of training."""

    LEARN_RANGES = "learn ranges"
    RANGES_FROZEN = "ranges frozen"
    BATCHNORM_FROZEN = "ranges and BatchNorm statistics frozen"

    @property
    def ranges_move(self) -> bool:
        """Whether observers follow the training batches."""
        return self is Phase.LEARN_RANGES

    @property
    def batchnorm_moves(self) -> bool:
        """Whether BatchNorm's running statistics do."""
        return self is not Phase.BATCHNORM_FROZEN


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When ranges and BatchNorm statistics stop to move, as shares of training.

    Args:
        freeze_observers_at: observed ranges are frozen from here on; 1 never freezes them. Trained ranges (LSQ, PACT)
            are the optimizer's, from the first step to the last.
        freeze_bn_at: BatchNorm normalises by its running statistics from here on, as it will when deployed.
        activations_from: activations are quantized from here on, weights throughout.

    Raises:
        ConfigError: unless 0 <= freeze_observers_at <= freeze_bn_at <= 1, and activations join before training ends,
            and before their ranges are frozen.
    """

    freeze_observers_at: float = 0.5
    freeze_bn_at: float = 0.75
    activations_from: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares out of order."""
        if not 0 <= self.freeze_observers_at <= self.freeze_bn_at <= 1:
            raise ConfigError(
                "need 0 <= freeze_observers_at <= freeze_bn_at <= 1, "
                f"got {self.freeze_observers_at} and {self.freeze_bn_at}"
            )
        if not 0 <= self.activations_from < 1 or self.activations_from > self.freeze_observers_at:
            raise ConfigError(
                "need 0 <= activations_from <= freeze_observers_at, and activations_from < 1, "
                f"got {self.activations_from} and {self.freeze_observers_at}: activations train on their grid before "
                "it is frozen"
            )

    def phase(self, progress: float) -> Phase:
        """The phase of the batch before which `progress` of training is done."""
        # at, not after: of 10 batches with a share of 0.5, batches 0 .. 4 learn and batch 5 is the first frozen one
        if progress >= self.freeze_bn_at:
            return Phase.BATCHNORM_FROZEN
        if progress >= self.freeze_observers_at:
            return Phase.RANGES_FROZEN
        return Phase.LEARN_RANGES

    def quantizes_activations(self, progress: float) -> bool:
        """Whether activations are quantized in the batch before which `progress` of training is done."""
        return progress >= self.activations_from  # at, as above

    def never_begun(self, last: float) -> list[str]:
        """The shares that no batch reaches, where `last` is the progress of the last ones; 1 is not meant to be."""
        names = ("activations_from", "freeze_observers_at", "freeze_bn_at")
        return [name for name in names if last < getattr(self, name) < 1]


def progress(
    *, epoch: int, batch: int, batches: float, max_epochs: int | None, step: int = 0, max_steps: int = -1
) -> float:
    """Share of training done before a batch, in 0 .. 1; of two limits, the one that is nearer.

    Args:
        epoch: epochs completed.
        batch: batches of this epoch completed, whether or not the optimizer stepped at each.
        batches: batches in an epoch; infinite where unknown, then progress moves once an epoch.
        max_epochs: Lightning's limit; None or -1 for none.
        step: optimizer steps completed.
        max_steps: Lightning's limit; -1 for none.
    """
    shares = [0.0]
    if max_epochs is not None and max_epochs > 0:
        # one division of integers, correctly rounded: 3 of 5 epochs is the same number as 0.6 in a config
        whole = math.isfinite(batches)
        shares.append((epoch * int(batches) + batch) / (max_epochs * int(batches)) if whole else epoch / max_epochs)
    if max_steps > 0:
        shares.append(step / max_steps)
    return min(max(shares), 1.0)
