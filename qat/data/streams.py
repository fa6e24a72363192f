"""Random streams: one run seed, and independent reproducible draws for each use of it.

A stream is a pure function of its keys, so what epoch 7 draws does not depend on what was drawn before it, on the
global generators, or on the number of workers.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are drawn for; part of the key, so that no two uses share a sequence."""

    ORDER = 1
    AUGMENTATION = 2
    CALIBRATION = 3


def stream_seed(stream: Stream, *keys: int) -> int:
    """A 32-bit seed for `stream` under `keys` (run seed, epoch, row), all of them non-negative integers.

    Neighbouring keys give unrelated seeds: seed 0 in epoch 1 is not seed 1 in epoch 0.
    """
    return int(np.random.SeedSequence([stream, *keys]).generate_state(1)[0])
