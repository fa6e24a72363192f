"""The inputs of a model in a batch, as loaders give them: one tensor, several, or by keyword; and the output it means.

x                       one input
(x, labels)             one input, and labels as a DataLoader gives them
((a, b), labels)        several inputs; ((a, b),) without labels
({"a": a}, labels)      by keyword; {"a": a} without labels
(({"a": a},), labels)   a dict as one input
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from qat.errors import DataError

CONTAINERS = (Mapping, list, tuple)  # of several tensors, taken as one input
SETTINGS = (bool, str, type(None))  # forward branches on them: fixed in a graph, and no inputs of a file


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

        def own(x: Tensor) -> Tensor:
            return x.detach().to(device, copy=True)  # some forwards write into it

        return model(*tree_map_only(Tensor, own, self.args), **tree_map_only(Tensor, own, dict(self.kwargs)))

    def flat(self) -> Inputs:
        """What a file takes, as `qat.export.flat` names it: containers opened, entries of dicts by keyword."""
        args: list[Any] = []
        named: dict[str, Any] = {}
        for x in self.args:
            if isinstance(x, Mapping):
                named |= {entry_name(key): value for key, value in x.items()}
            elif not isinstance(x, SETTINGS):
                args += x if isinstance(x, list | tuple) else [x]
        for name, x in self.kwargs.items():
            if isinstance(x, Mapping):
                named |= {entry_name(key): value for key, value in x.items()}
            elif isinstance(x, list | tuple):
                named |= {f"{name}_{i}": value for i, value in enumerate(x)}
            elif not isinstance(x, SETTINGS):
                named[name] = x
        return Inputs(tuple(args), named)

    def ordered(self, names: Sequence[str]) -> list[Any]:
        """All of them by position, as an artefact with inputs of these names takes them.

        Raises:
            DataError: an input is missing.
        """
        flat = self.flat()
        if not names:  # a file that was written elsewhere
            return [*flat.args, *flat.kwargs.values()]
        left = names[len(flat.args) :]
        missing = [name for name in left if name not in flat.kwargs]
        if missing or len(flat.args) > len(names):
            given = [*(f"input {i}" for i in range(len(flat.args))), *flat.kwargs]
            raise DataError(
                f"the artefact takes {', '.join(names)}, and the batch has {', '.join(given)}; several inputs come as "
                "((a, b), labels) or ({'a': a, 'b': b}, labels)"
            )
        return [*flat.args, *(flat.kwargs[name] for name in left)]

    def __len__(self) -> int:
        """N, the number of examples."""
        return next(len(v) for v in tree_leaves((self.args, dict(self.kwargs))) if isinstance(v, Tensor) and v.ndim)


def entry_name(key: Any) -> str:
    """The name of a dict's entry as an input of a file: its key, as Python may name an argument."""
    name = re.sub(r"\W", "_", str(key))
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"_{name}"


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
