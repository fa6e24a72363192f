"""`nn.SyncBatchNorm` in a float model: placed like any BatchNorm, synchronised over processes as before.

open    SyncBatchNorm -> BatchNorm{1,2,3}d with `synced` set, before the model is captured
close   those that end in no quantizer -> SyncBatchNorm again; the others keep `synced` (layers/batchnorm.py)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qat.inputs import anew
from qat.layers.adopt import adopt

PLAIN = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}  # by dimensions of the input


def open_synced(root: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Make every SyncBatchNorm that `root` calls on the inputs a plain one."""
    found = [m for m in root.modules() if isinstance(m, nn.SyncBatchNorm)]
    if not found:
        return
    dims: dict[nn.Module, int] = {}
    handles = [m.register_forward_pre_hook(lambda m, x: dims.setdefault(m, x[0].ndim) and None) for m in found]
    modes = {m: m.training for m in root.modules()}
    try:
        with torch.no_grad():
            root.eval()(*anew(args), **anew(dict(kwargs)))
    except Exception:  # capturing says why, in words
        return
    finally:
        for m, mode in modes.items():
            m.training = mode
        for handle in handles:
            handle.remove()
    plain = {norm: adopt(norm, PLAIN[count]) for norm, count in dims.items() if count in PLAIN}
    for norm in plain.values():
        norm.synced = True  # type: ignore[assignment]
    for name, m in list(root.named_modules(remove_duplicate=False)):
        if m in plain:
            root.set_submodule(name, plain[m])


def close_synced(root: nn.Module) -> None:
    """Make those that are still plain what they were."""
    closed: dict[nn.Module, nn.Module] = {}
    for name, m in list(root.named_modules(remove_duplicate=False)):
        if type(m) in PLAIN.values() and getattr(m, "synced", False):
            root.set_submodule(name, closed.setdefault(m, adopt(m, nn.SyncBatchNorm)))
