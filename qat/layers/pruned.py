"""Weights that torch.nn.utils.prune masks, brought through quantization: zeros stay zeros in the integers.

    w' = m * w         m in {0, 1}; zero is an integer of every grid of weights, so Q(w') = 0 where m = 0
    dL/dw = m * dL/dw' what is masked gets no gradient, and as it is zero, decay, momentum and averages leave it there

torch multiplies `weight_orig` by `weight_mask` before every call, into an attribute that neither a deep copy nor a
tracer can take. `copied` makes it a parameter again, beside its mask; a fake-quant layer multiplies the two by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from qat.errors import PlacementError
from qat.layers.weighted import FakeQuantWeight

MASK = "weight_mask"
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
Hook = prune.BasePruningMethod


def copied(model: nn.Module, *, masks: bool = True) -> nn.Module:
    """A deep copy whose pruned tensors are parameters, zero where they are masked; `model` is untouched.

    Args:
        model: pruned or not.
        masks: whether each weight keeps its mask, as the buffer `weight_mask`; if not, only its zeros.

    Raises:
        PlacementError: masks of anything but weights of convolutions and linear layers, and they are to be kept.
    """
    found = list(_hooks(model))
    others = [
        f"{path}.{hook._tensor_name}".lstrip(".")
        for path, module, _, hook in found
        if hook._tensor_name != "weight" or not _is_layer(module)
    ]
    if masks and others:
        raise PlacementError(
            f"{', '.join(others)}: pruned, and masks are kept for weights of convolutions and linear layers alone. "
            "Make it permanent with torch.nn.utils.prune.remove; its zeros may then be trained away"
        )
    # a product with a gradient, which cannot be copied; it is replaced below
    memo: dict[int, object] = {id(t): t.detach().clone() for t in (getattr(m, h._tensor_name) for _, m, _, h in found)}
    root = copy.deepcopy(model, memo)
    shared = _shared(root)
    for _, module, key, hook in list(_hooks(root)):
        name = hook._tensor_name
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
        tensor, mask = module._parameters.pop(f"{name}_orig"), module._buffers.pop(f"{name}_mask")
        assert tensor is not None
        assert mask is not None
        if id(tensor) in shared and not masks:
            tensor = nn.Parameter(tensor.detach().clone())
        if id(tensor) not in shared:  # a tied one is masked where it is read
            with torch.no_grad():
                tensor.mul_(mask)
        setattr(module, name, tensor)
        if masks:
            module.register_buffer(MASK, mask)
    return root


def hand_back(root: nn.Module) -> None:
    """Give layers that stay in float torch's own hook for their masks, in place."""
    for module in root.modules():
        if MASK in module._buffers and not isinstance(module, FakeQuantWeight):
            prune.custom_from_mask(module, "weight", module._buffers.pop(MASK))


def notes(root: nn.Module) -> tuple[str, ...]:
    """What the plan says of masks."""
    found = [m._buffers.get(MASK) for m in root.modules() if isinstance(m, FakeQuantWeight)]
    kept = [mask for mask in found if mask is not None]
    if not kept:
        return ()
    share = sum(int((mask == 0).sum()) for mask in kept) / sum(mask.numel() for mask in kept)
    return (f"masks kept: {len(kept)}; {100 * share:.1f} % of the weights under them are zero",)


def zeros_of(module: nn.Module) -> Tensor | None:
    """The mask that keeps the zeros of a convolution or linear layer; None for others, and where nothing is zero."""
    weight = module._parameters.get("weight") if _is_layer(module) else None
    mask = None if weight is None else (weight != 0).to(weight.dtype)
    return None if mask is None or mask.all() else mask


def _hooks(root: nn.Module) -> Iterator[tuple[str, nn.Module, int, Hook]]:
    """Paths, modules and hooks of everything pruned."""
    for path, module in root.named_modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, Hook):
                yield path, module, key, hook


def _is_layer(module: nn.Module) -> bool:
    """Whether placement takes a module for a convolution or linear layer, or has done so."""
    plain = any(isinstance(module, cls) and type(module).forward is cls.forward for cls in LAYERS)
    return plain or isinstance(module, FakeQuantWeight)


def _shared(root: nn.Module) -> set[int]:
    """Parameters, by identity, that several modules have."""
    count: dict[int, int] = {}
    for module in root.modules():
        for tensor in module._parameters.values():
            count[id(tensor)] = count.get(id(tensor), 0) + 1
    return {key for key, n in count.items() if n > 1}
