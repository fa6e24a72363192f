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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from qat.errors import DataError

CONTAINERS = (Mapping, list, tuple)  # of several tensors, taken as one input
ANY = -1  # number of examples
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
        """What `model` returns for copies of them, on its device.

        Raises:
            DataError: a keyword that its forward has not.
        """

        def own(x: Tensor) -> Tensor:
            return x.detach().to(device, copy=True)  # some forwards write into it

        args, kwargs = tree_map_only(Tensor, own, (self.args, dict(self.kwargs)))
        try:
            return model(*args, **kwargs)
        except TypeError as error:
            if not self.kwargs or "unexpected keyword argument" not in str(error):
                raise
            raise DataError(
                f"{error}: a dict of a batch is given by keyword. One that forward takes as one input comes as "
                "(({'image': x},), labels)"
            ) from error

    def ordered(self, names: Sequence[str]) -> list[Any]:
        """The tensors by position, as an artefact with inputs of these names takes them.

        Raises:
            DataError: an input is missing.
        """
        args = [x for x in self.args if isinstance(x, Tensor)]
        if not names:  # a file that was written elsewhere
            return [*args, *self.kwargs.values()]
        left = names[len(args) :]
        missing = [name for name in left if name not in self.kwargs]
        if missing or len(args) > len(names):
            given = [*(f"input {i}" for i in range(len(args))), *self.kwargs]
            raise DataError(
                f"the artefact takes {', '.join(names)}, and the batch has {', '.join(given)}; several inputs come as "
                "((a, b), labels) or ({'a': a, 'b': b}, labels)"
            )
        return [*args, *(self.kwargs[name] for name in left)]

    def __len__(self) -> int:
        """N, the number of examples."""
        return next(len(v) for v in tree_leaves((self.args, dict(self.kwargs))) if isinstance(v, Tensor) and v.ndim)


def entry_name(key: Any) -> str:
    """The name of a dict's entry as an input of a file: its key, as Python may name an argument."""
    name = re.sub(r"\W", "_", str(key))
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"_{name}"


def anew(arguments: Any) -> Any:
    """The same tensors in new containers: some forwards take entries out of them."""
    return tree_map_only(Tensor, lambda x: x, arguments)


def map_examples(function: Callable[[Tensor], Any], arguments: Any, *, other: Callable[[Tensor], Any]) -> Any:
    """`function` of the tensors with the examples of a batch in front, `other` of the rest.

    There are as many examples as the first tensor is long; those in lists and tuples come last. Entries of these count
    where an image batch, `[N, C, H, W]`, or tensors of several ranks are among them, or where all have that length;
    `[C, H, W]` alone are single images.

    Args:
        function: of a tensor `[N, ...]`.
        arguments: a tuple, or a dict by name, of tensors, nested dicts, lists and tuples; made anew.
        other: of a tensor without N.
    """
    values = list(arguments.values() if isinstance(arguments, Mapping) else arguments)
    examples = next((len(x) for x in [*_batched(values, None), *_batched(values, ANY)]), None)
    batched = {id(x) for x in _batched(values, examples) if len(x) == examples}

    def change(x: Tensor) -> Any:
        return function(x) if id(x) in batched else other(x)

    return tree_map_only(Tensor, change, arguments)


def _batched(values: Iterable[Any], examples: int | None) -> Iterator[Tensor]:
    """Tensors that may have examples in front; of lists and tuples with `ANY`, or where all are `examples` long."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim:
            yield value
        elif isinstance(value, Mapping):
            yield from _batched(value.values(), examples)
        elif isinstance(value, list | tuple) and examples is not None:
            tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor) and x.ndim]
            ranks = {x.ndim for x in tensors}
            if len(ranks) > 1 or max(ranks, default=0) >= 4 or {len(x) for x in tensors} == {examples}:
                yield from _batched(value, examples)


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
