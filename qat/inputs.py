"""The inputs of a model in a batch, as loaders give them: one tensor, several, or by keyword; and the output it means.

x                       one input
(x, labels)             one input, and labels as a DataLoader gives them
((a, b), labels)        several inputs; ((a, b),) without labels
({"a": a}, labels)      by keyword; {"a": a} without labels
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from qat.errors import DataError


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword inputs of one batch, tensors `[N, ...]`."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, batch: Any) -> Inputs:
        """The inputs of a batch; its labels are left out."""
        found = batch[0] if isinstance(batch, list | tuple) else batch
        if isinstance(found, Inputs):
            return found
        if isinstance(found, Mapping):
            return cls((), found)
        return cls(tuple(found) if isinstance(found, list | tuple) else (found,), {})

    def call(self, model: nn.Module, device: Any) -> Any:
        """What `model` returns for copies of them, on its device."""

        def own(v: Any) -> Any:
            return v.detach().to(device, copy=True) if isinstance(v, Tensor) else v  # some forwards write into it

        return model(*(own(v) for v in self.args), **{k: own(v) for k, v in self.kwargs.items()})

    def ordered(self, names: Sequence[str]) -> list[Any]:
        """All of them by position, as an artefact with inputs of these names takes them.

        Raises:
            DataError: an input is missing.
        """
        if not names:  # a file that was written elsewhere
            return [*self.args, *self.kwargs.values()]
        left = names[len(self.args) :]
        missing = [name for name in left if name not in self.kwargs]
        if missing or len(self.args) > len(names):
            given = [*(f"input {i}" for i in range(len(self.args))), *self.kwargs]
            raise DataError(
                f"the artefact takes {', '.join(names)}, and the batch has {', '.join(given)}; several inputs come as "
                "((a, b), labels) or ({'a': a, 'b': b}, labels)"
            )
        return [*self.args, *(self.kwargs[name] for name in left)]

    def __len__(self) -> int:
        """N, the number of examples."""
        return next(len(v) for v in (*self.args, *self.kwargs.values()) if isinstance(v, Tensor) and v.ndim)


def first_output(result: Any) -> Tensor:
    """The tensor that a classifier means: itself, or the first among what it returned, however nested.

    Raises:
        DataError: there is none.
    """
    found = next((leaf for leaf in _leaves(result) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise DataError(f"the model returned no tensor to compare, but {result!r:.80}")
    return found


def _leaves(result: Any) -> Iterator[Any]:
    if isinstance(result, Mapping | list | tuple):
        for part in result.values() if isinstance(result, Mapping) else result:
            yield from _leaves(part)
    else:
        yield result
