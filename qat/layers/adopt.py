"""Turn a float layer into its fake-quant subclass without copying a tensor or running a constructor."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def adopt(module: nn.Module, cls: type[M]) -> M:
    """An instance of `cls` with the parameters, buffers, settings and hooks of `module`.

    The parameter objects are the same, so weights tied elsewhere stay tied.
    """
    new = cls.__new__(cls)
    nn.Module.__init__(new)
    new.__dict__.update(module.__dict__)
    for registry in (
        "_parameters",
        "_buffers",
        "_modules",
    ):  # the new layer gets children that the old one must not see
        new.__dict__[registry] = dict(module.__dict__[registry])
    return new
