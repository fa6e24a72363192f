"""What kind of module can be prepared at all, asked before anything is traced."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from qat.errors import PlacementError
from qat.placement.rules import matching


def usable(model: nn.Module, patterns: Sequence[str] = ()) -> nn.Module:
    """The model itself, or the one that `torch.compile` was given.

    Args:
        model: what the user brought.
        patterns: of modules that stay in float, which may compute their weights as they like.

    Raises:
        PlacementError: TorchScript, layers that do not know their shapes yet, parameters that are not float32, weights
            that are computed from others at every call.
    """
    model = getattr(model, "_orig_mod", model)
    name = type(model).__name__
    scripted = [path or name for path, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise PlacementError(
            f"{scripted[0]} is TorchScript, which has no Python forward left to quantize; prepare the module that it "
            "was made of, and script or export the result"
        )
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [path for path, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise PlacementError(
            f"{name} has lazy layers, {_some(lazy)}, whose shapes are not known before their first call; call the "
            "model once on an example"
        )
    other = {
        path: p.dtype for path, p in model.named_parameters() if p.is_floating_point() and p.dtype != torch.float32
    }
    if other:
        first = next(iter(other.values()))
        raise PlacementError(
            f"{name} has parameters of {first}, {_some(list(other))}; scales are computed in float32: prepare "
            "model.float(), and train it in mixed precision with autocast (trainer.precision)"
        )
    computed = [path for path, module in model.named_modules() if _computes_its_weight(module)]
    computed = [path for path in computed if not any(matching(pattern, [path]) for pattern in patterns)]
    if computed:
        raise PlacementError(
            f"{name} computes weights from other parameters at every call, in {_some(computed)} (weight_norm, "
            "spectral_norm, a parametrization); a grid needs the weight itself: make it plain with "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), or remove_weight_norm(layer) and "
            "remove_spectral_norm(layer) of torch.nn.utils, or exclude the layer"
        )
    return model


def _computes_its_weight(module: nn.Module) -> bool:
    hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}  # of torch.nn.utils, not of its prune
    return is_parametrized(module) or bool(hooks & {"WeightNorm", "SpectralNorm"})


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
