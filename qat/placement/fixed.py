"""Arguments of forward that a graph has at one value: defaults that the example left alone, and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qat.errors import CaptureError


@dataclass(frozen=True)
class FixedArguments:
    """Callers may give them or leave them out, as for the float model, but not change them.

    Attributes:
        names: of all arguments of forward that can be given by position, in order.
        values: of the fixed ones, by name.
        entries: settings in dicts, lists and tuples; their values by name of the argument and keys.
    """

    names: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    entries: Mapping[tuple[Any, ...], Any] = field(default_factory=dict)

    def left(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call without the fixed ones.

        Raises:
            CaptureError: one of them has another value.
        """
        given = dict(zip(self.names, args, strict=False)) | dict(kwargs)
        for name in self.values.keys() & given.keys():
            _require_same(name, given[name], self.values[name])
        for (name, *keys), fixed in self.entries.items():
            if name in given:
                _require_same("".join((name, *(f"[{key!r}]" for key in keys))), _entry(given[name], keys), fixed)
        kept = [x for name, x in zip(self.names, args, strict=False) if name not in self.values]
        named = {name: x for name, x in kwargs.items() if name not in self.values}
        return (*kept, *args[len(self.names) :]), named


def _entry(value: Any, keys: list[Any]) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return ...
    return value


def _require_same(name: str, value: Any, fixed: Any) -> None:
    comparable = type(value) is type(fixed) or (_is_number(value) and _is_number(fixed))  # 1 and 1.0, but not True
    if value is fixed or (comparable and not isinstance(value, Tensor) and bool(value == fixed)):
        return
    raise CaptureError(
        f"forward was captured with {name}={_short(fixed)} and is called with {name}={_short(value)}: settings are "
        "fixed when a model is prepared. Prepare it with example inputs that say so, or use placement=modules"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: Any) -> str:
    return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.80}"
