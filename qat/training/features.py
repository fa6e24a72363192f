"""What a network computes on the way, of a student and of its teacher, by the same names.

The graph of a prepared network is flat, and activations are part of what stands before them: blocks of the float model
are never called. So the teacher is a twin of the prepared network with the float model's weights and its quantizers
off, which computes what the float model does, and calls the modules that the student calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from qat.errors import ConfigError, unknown_name
from qat.functional.distillation import feature_loss
from qat.layers import pruned
from qat.placement import PreparedModel
from qat.placement.modules import PreparedModules
from qat.switches import fake_quant

SUFFIXES = (".output_quantizer", "_quantizer", "")  # what ends a value, where it has a quantizer of its own


class FeatureTeacher:
    """The twin of a prepared network.

    Args:
        student: the prepared network.
        teacher: the float model that it was prepared from.
        names: of values, as the plan has them.

    Raises:
        ConfigError: the network is not prepared, or without a graph; names that it does not call.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, names: Sequence[str]) -> None:
        if not isinstance(student, PreparedModel) or isinstance(student, PreparedModules):
            raise ConfigError(
                f"distill.features needs a network that is prepared along its graph, got {type(student).__name__}; use "
                "the callback or qat.prepare first, with placement=graph, or leave distill.features out"
            )
        self.paths = tuple(_paths(student, names))
        self.twin = cast(PreparedModel, pruned.copied(student)).eval().requires_grad_(False)
        weights = teacher.state_dict()
        own = self.twin.state_dict()
        self.twin.load_state_dict({**own, **{name: tensor for name, tensor in weights.items() if name in own}})
        fake_quant(self.twin, enabled=False)

    def taught(self, images: Tensor) -> tuple[Any, list[Tensor]]:
        """What the teacher returns, and its features."""
        self.twin.to(images.device)
        with torch.no_grad(), watched(self.twin, self.paths) as seen:
            return self.twin(images), seen

    def loss(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean of the losses of all features."""
        return torch.stack([feature_loss(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


@contextmanager
def watched(model: nn.Module, paths: Sequence[str]) -> Iterator[list[Tensor]]:
    """The outputs of modules while the context is open, in the order of their calls."""
    seen: list[Tensor] = []
    handles = [model.get_submodule(path).register_forward_hook(lambda _, __, y: seen.append(y)) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _paths(student: PreparedModel, names: Sequence[str]) -> Iterator[str]:
    called = [{str(n.target) for n in g.nodes if n.op == "call_module"} for g in student.graphs.values()]
    both = set.intersection(*called)
    found = {name: next((name + end for end in SUFFIXES if name + end in both), None) for name in names}
    known = sorted({path.removesuffix(".output_quantizer").removesuffix("_quantizer") for path in both})
    wrong = [name for name, path in found.items() if path is None]
    if wrong:
        raise ConfigError(". ".join(unknown_name("name in distill.features", name, known) for name in wrong))
    return (path for path in found.values() if path is not None)
