"""How much a network learns from its teacher, and from which.

loss = (1 - weight) * CE(logits, labels) + weight * T^2 KL(teacher || logits)       functional/distillation.py
       + feature_weight * mean over `features` of the squared error relative to the teacher's     features.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        features: modules whose outputs are to be the teacher's too, by the names of the plan, e.g. `layer3.2.add`.
        feature_weight: of their loss beside that of labels and logits, > 0.

    Raises:
        ConfigError: a value out of range.
    """

    temperature: float = 2.0
    weight: float = 0.5
    features: Sequence[str] = ()
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"need distill.temperature > 0, got {self.temperature}; 2 to 4 are usual")
        if not 0 < self.weight <= 1:
            raise ConfigError(
                f"need 0 < distill.weight <= 1, got {self.weight}; to learn from labels alone: distill=null"
            )
        if isinstance(self.features, str) or not all(isinstance(name, str) and name for name in self.features):
            raise ConfigError(f"need distill.features=[NAME, ...], names of the plan, got {self.features!r}")
        object.__setattr__(self, "features", tuple(self.features))
        if not (self.feature_weight > 0 and math.isfinite(self.feature_weight)):
            raise ConfigError(
                f"need distill.feature_weight > 0, got {self.feature_weight}; without: distill.features=[]"
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
