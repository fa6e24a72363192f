"""How much a network learns from its teacher, and from which.

loss = (1 - weight) * CE(logits, labels) + weight * T^2 KL(teacher || logits)       functional/distillation.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from qat.errors import ConfigError
from qat.functional.distillation import distillation_loss
from qat.placement import PreparedModel


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The share of the teacher in the loss.

    Args:
        temperature: of both softmaxes, > 0.
        weight: share of the teacher in the loss, in (0, 1]; 1 learns from it alone.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 2.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"need distill.temperature > 0, got {self.temperature}; 2 to 4 are usual")
        if not 0 < self.weight <= 1:
            raise ConfigError(
                f"need 0 < distill.weight <= 1, got {self.weight}; to learn from labels alone: distill=null"
            )

    def loss(self, from_labels: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss above, of logits [N, C] and what the labels say of the student's."""
        from_teacher = distillation_loss(student, teacher, self.temperature)
        return (1 - self.weight) * from_labels + self.weight * from_teacher


def require_teacher(teacher: nn.Module | None) -> nn.Module:
    """The teacher, in evaluation mode and without gradients.

    Raises:
        ConfigError: there is none, or it is no float model.
    """
    if teacher is None:
        raise ConfigError("distillation needs a float teacher: Classifier(model, distill=..., teacher=float_model)")
    if isinstance(teacher, PreparedModel):
        raise ConfigError(
            "the teacher is quantized already; distillation needs the float model that qat.prepare was given"
        )
    return teacher.eval().requires_grad_(False)
