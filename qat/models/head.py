"""The head of a classifier: the tensors whose shape depends on the number of classes, auxiliary heads included.

    head = {key : shape of key in build(C) differs from that in build(C + 1)}

Both are built on the meta device, where nothing is computed or stored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from qat.errors import ConfigError
from qat.models.fit import shapes_of

Build = Callable[[int], nn.Module]


def head_of(build: Build, num_classes: int) -> tuple[str, ...]:
    """Names of the head's tensors, in the order of the state dict.

    Args:
        build: The model for a number of classes.
        num_classes: That of the model in question.

    Raises:
        ConfigError: No tensor depends on the number of classes.
    """
    model, other = _on_meta(build, num_classes), _on_meta(build, num_classes + 1)
    shapes, others = shapes_of(model.state_dict()), shapes_of(other.state_dict())
    head = tuple(key for key, shape in shapes.items() if others.get(key) != shape)
    if not head:
        raise ConfigError(
            f"{type(model).__name__} has no head to reset or to train alone: none of its tensors depends on "
            "num_classes. Build its last layer from num_classes"
        )
    return head


def _on_meta(build: Build, num_classes: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(num_classes)
    except Exception:  # a constructor that reads values: build it for real, and give back what it draws
        with torch.random.fork_rng():
            return build(num_classes)
