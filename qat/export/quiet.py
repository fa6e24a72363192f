"""Exporters talk: deprecations in what they call, a line for every pass. A caller asked for a file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """A block without warnings, and without what is less than an error from `loggers` (the root, for none)."""
    found = [logging.getLogger(name) for name in loggers or ("",)]
    levels = [one.level for one in found]
    for one in found:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(found, levels, strict=True):
            one.setLevel(level)
