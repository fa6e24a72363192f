"""Switches for any training loop: fake quantization, observers, BatchNorm statistics.

They act at once and are idempotent, so a schedule can apply them at every batch. None of them is saved in a checkpoint:
the time belongs to the schedule, not to the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from qat.errors import PlacementError
from qat.layers.batchnorm import _FakeQuantBatchNorm
from qat.placement.prepared import PreparedModel, batchnorms, quantizers
from qat.quantizers import FakeQuantize

# of a frozen BatchNorm: whether it was in evaluation mode before, in a network that trains
BY_HAND = "_frozen_by_hand"


def fake_quant(model: nn.Module, *, enabled: bool, activations: bool | None = None) -> None:
    """Switch all fake-quant modules below `model` on or off; off, it computes exactly what the float model does.

    Args:
        model: a prepared model, or a module that holds some.
        enabled: whether weights, and what flows between operators, are put on their grids.
        activations: another answer for what flows between operators; None for the same.
    """
    for name, quantizer in _named_quantizers(model).items():
        weight = name.rpartition(".")[2] == "weight_quantizer"
        quantizer.enabled = enabled if weight or activations is None else activations
    for norm in _bare_norms(model):
        norm.enabled = enabled if activations is None else activations


def observers(model: nn.Module, *, enabled: bool, trained: bool = True) -> None:
    """Let ranges follow the data in training mode, or freeze them. They never move in evaluation mode.

    Args:
        model: a prepared model, or a module that holds some.
        enabled: whether ranges move.
        trained: whether ranges that gradients move (LSQ, PACT) are meant too; the schedule leaves them alone.
    """
    for quantizer in _quantizers(model):
        if trained or not quantizer.trained:
            quantizer.observing = enabled


def freeze_batchnorm(model: nn.Module, *, frozen: bool = True) -> None:
    """Keep BatchNorm's running mean and variance as they are, through later calls of `train()` too.

    Weight and bias of BatchNorm go on training; the running statistics normalise training batches as well.

    Args:
        model: a prepared model, or a module that holds some.
        frozen: False lets those move again that were frozen here; one that was put into evaluation mode by hand,
            in a network that trains, stays there.
    """
    prepared = [m for m in model.modules() if isinstance(m, PreparedModel)]
    if not prepared:
        raise PlacementError(f"no prepared model in {type(model).__name__}; call qat.prepare first")
    for module in prepared:
        before, module.batchnorm_frozen = module.batchnorm_frozen, frozen
        for norm in batchnorms(module):
            if frozen and not before:
                vars(norm)[BY_HAND] = module.training and not norm.training
            if frozen:
                norm.training = False
            elif before:  # otherwise whoever set its mode keeps the last word
                norm.training = module.training and not vars(norm).pop(BY_HAND, False)


def sync_batchnorm(model: nn.Module) -> nn.Module:
    """BatchNorm over the batches of all processes, as `nn.SyncBatchNorm.convert_sync_batchnorm` makes it.

    That one would put plain layers in the place of those that end in a quantizer; here they stay, and so does every
    parameter. Works before and after DDP is put around the model. Where a process has too few images for statistics.

    Args:
        model: a prepared model, a float one, or a module that holds some.

    Returns:
        The model; another object only where it is itself a float BatchNorm.
    """
    if isinstance(model, _FakeQuantBatchNorm):
        model.synced = True
        return model
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in model.named_children():
        model.add_module(name, sync_batchnorm(child))
    return model


@contextmanager
def as_deployed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with fake quantization on, what the artefact computes; modes and switches are back afterwards.

    Args:
        model: a prepared model, or a module that holds some.
    """
    modes = {module: module.training for module in model.modules()}
    enabled = {module: module.enabled for module in (*_quantizers(model), *_bare_norms(model))}
    model.eval()
    fake_quant(model, enabled=True)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for switched, was in enabled.items():
            switched.enabled = was


def _quantizers(model: nn.Module) -> list[FakeQuantize]:
    return list(_named_quantizers(model).values())


def _bare_norms(model: nn.Module) -> list[_FakeQuantBatchNorm]:
    """BatchNorms that end in no quantizer, and have a switch of their own."""
    return [m for m in model.modules() if isinstance(m, _FakeQuantBatchNorm) and m.output_quantizer is None]


def _named_quantizers(model: nn.Module) -> dict[str, FakeQuantize]:
    found = quantizers(model)
    if not found:
        raise PlacementError(f"no quantizer in {type(model).__name__}; call qat.prepare first")
    return found
