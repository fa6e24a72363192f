"""What a classifier returned, sorted: logits for the answer, auxiliary logits for the loss.

    Tensor [N, C]                        logits
    namedtuple with `logits`             logits, and its other tensors as auxiliary (GoogLeNet, Inception in training)
    tuple or list of [N, C]              the first, and the others as auxiliary
    mapping                              "logits", else the first value; keys that begin with "aux" as auxiliary

    loss = CE(logits) + w * sum_k CE(auxiliary_k)

w is 0.3 in GoogLeNet (Szegedy et al. 2014, arXiv:1409.4842, section 5), 0.4 for Inception v3 (its authors' TF-slim).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qat.errors import ConfigError

LOGITS = "logits"
AUXILIARY = "aux"  # how torchvision begins the names of such outputs
AUX_WEIGHTS = {"GoogLeNetOutputs": 0.3, "InceptionOutputs": 0.4}  # by the type that torchvision returns
DEFAULT_AUX_WEIGHT = 0.3


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The logits of a model, and those of its auxiliary heads.

    Attributes:
        logits: [N, C].
        auxiliary: [N, C] each; none in evaluation mode.
        aux_weight: weight of their losses in the paper of the model.
    """

    logits: Tensor
    auxiliary: tuple[Tensor, ...] = ()
    aux_weight: float = DEFAULT_AUX_WEIGHT

    @classmethod
    def of(cls, returned: Any, owner: str) -> Outputs:
        """Sort what a model returned.

        Args:
            returned: by its forward.
            owner: name of its class, for the message.

        Raises:
            ConfigError: no logits [N, C] of a float type can be found in it.
        """
        logits, auxiliary = _split(returned)
        for tensor in (logits, *auxiliary):
            if not isinstance(tensor, Tensor) or tensor.ndim != 2 or not tensor.is_floating_point():
                raise ConfigError(
                    f"{owner} returns {describe(returned)}, which the loss cannot use; need logits [N, classes] alone, "
                    "first in a tuple (auxiliary logits behind them), or under 'logits' in a dict. Wrap the model in "
                    "one that returns these"
                )
        return cls(
            logits=logits, auxiliary=auxiliary, aux_weight=AUX_WEIGHTS.get(type(returned).__name__, DEFAULT_AUX_WEIGHT)
        )


def describe(returned: Any) -> str:
    """Types and shapes in words: `a tuple of (float32 [2, 10], a list of (float32 [2, 3, 8, 8]))`."""
    if isinstance(returned, Tensor):
        return f"{str(returned.dtype).removeprefix('torch.')} {list(returned.shape)}"
    name = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"a {name} of {{{', '.join(f'{key!r}: {describe(value)}' for key, value in returned.items())}}}"
    if isinstance(returned, tuple | list):
        return f"a {name} of ({', '.join(map(describe, returned))})"
    return f"a {name}"


def _split(returned: Any) -> tuple[Any, tuple[Any, ...]]:
    if isinstance(returned, tuple) and LOGITS in getattr(returned, "_fields", ()):
        fields = returned._asdict()  # type: ignore[attr-defined]  # a namedtuple's
        logits = fields.pop(LOGITS)
        return logits, tuple(value for value in fields.values() if value is not None)
    if isinstance(returned, Mapping) and returned:
        logits = returned[LOGITS] if LOGITS in returned else next(iter(returned.values()))
        others = (value for key, value in returned.items() if str(key).startswith(AUXILIARY))
        return logits, tuple(value for value in others if value is not None and value is not logits)
    if isinstance(returned, tuple | list) and returned:
        return returned[0], tuple(returned[1:])
    return returned, ()
