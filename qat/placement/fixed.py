"""What a graph has at one value: arguments that the example left at their default, settings, what forward asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Number
from typing import Any

from torch import Tensor

from qat.errors import CaptureError
from qat.inputs import CONTAINERS
from qat.placement.containers import Asked, What

ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class FixedArguments:
    """Callers may give them or leave them out, as for the float model, but not change them.

    Attributes:
        names: of all arguments of forward that can be given by position, in order.
        keywords: of those that cannot.
        values: of the fixed ones, by name.
        facts: what forward asked of its inputs when it was traced, by training mode.
        spread: the name of its `**kwargs`, if it has them.
        spread_is_read: whether the graph has them as an argument.
    """

    names: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[bool, Mapping[Asked, Any]] = field(default_factory=dict)
    spread: str | None = None
    spread_is_read: bool = False

    @property
    def empty(self) -> bool:
        """Whether every call of forward is one of the graph."""
        return not (self.values or any(self.facts.values()) or self.spread)

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name, `**kwargs` as one."""
        given = dict(zip(self.names, args, strict=False)) | dict(kwargs)
        if self.spread is None:
            return given
        known = {*self.names, *self.keywords}
        own = {name: value for name, value in given.items() if name in known}
        return {**own, self.spread: {name: value for name, value in given.items() if name not in known}}

    def checked(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool = False) -> dict[str, Any]:
        """The arguments of a call by name.

        Raises:
            CaptureError: a fixed one has another value.
        """
        if len(args) > len(self.names) and not self.empty:
            raise _refusal(f"at most {len(self.names)} inputs by position", str(len(args)))
        given = self.bound(args, kwargs)
        for name in self.values.keys() & given.keys():
            _require_same(name, self.values[name], given[name])
        for asked, fixed in self.facts.get(training, {}).items():
            if asked.path[0] in given:
                _require_fact(asked, fixed, given[asked.path[0]])
        return given

    def left(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], training: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call without the fixed ones, as the graph takes them.

        Raises:
            CaptureError: a fixed one has another value.
        """
        if self.empty:
            return args, dict(kwargs)
        self.checked(args, kwargs, training)
        kept = [x for name, x in zip(self.names, args, strict=False) if name not in self.values]
        named = {name: x for name, x in kwargs.items() if name not in self.values}
        if self.spread is not None and not self.spread_is_read:
            named = {name: x for name, x in named.items() if name in (*self.names, *self.keywords)}
        return tuple(kept), named


def _require_fact(asked: Asked, fixed: Any, value: Any) -> None:
    *inner, last = asked.path
    spelled = _spelled(asked.path)
    if asked.what is What.HAS:
        holder = _entry(value, inner[1:])
        keys = range(len(holder)) if isinstance(holder, list | tuple) else holder
        has = isinstance(holder, CONTAINERS) and last in keys
        if has != fixed:
            raise _refusal(spelled if fixed else f"no {spelled}", spelled if has else f"no {spelled}")
        return
    found = _entry(value, list(asked.path[1:]))
    if asked.what is What.KEYS:
        if not isinstance(found, Mapping) or not set(found) <= set(fixed):
            given = ", ".join(map(repr, found)) if isinstance(found, Mapping) else _short(found)
            raise _refusal(f"the keys {', '.join(map(repr, fixed)) or 'none'} in {spelled}", given)
    elif asked.what is What.LENGTH:
        length = len(found) if isinstance(found, CONTAINERS) else None
        if length != fixed:
            raise _refusal(f"{fixed} entries in {spelled}", _short(found) if length is None else str(length))
    else:
        _require_same(spelled, fixed, found)


def _entry(value: Any, keys: list[Any]) -> Any:
    for key in keys:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return value


def _require_same(name: str, fixed: Any, value: Any) -> None:
    if not _equal(value, fixed):
        raise _refusal(f"{name}={_short(fixed)}", f"no {name}" if value is ABSENT else f"{name}={_short(value)}")


def _equal(value: Any, fixed: Any) -> bool:
    if value is fixed:
        return True
    if isinstance(value, list | tuple) and isinstance(fixed, list | tuple):  # torch.Size for a tuple
        return len(value) == len(fixed) and all(map(_equal, value, fixed))
    numbers = all(isinstance(x, Number) and not isinstance(x, bool) for x in (value, fixed))  # 1 and 1.0, but not True
    if isinstance(value, Tensor) or (type(value) is not type(fixed) and not numbers):
        return False
    try:
        return bool(value == fixed)
    except Exception:  # arrays, whose comparison is no answer
        return False


def _refusal(fixed: str, given: str) -> CaptureError:
    return CaptureError(
        f"forward was captured with {fixed} and is called with {given}: settings are fixed when a model is prepared. "
        "Prepare it with example inputs that say so, or use placement=modules"
    )


def _spelled(path: tuple[Any, ...]) -> str:
    return "".join((str(path[0]), *(f"[{key!r}]" for key in path[1:])))


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    return "nothing" if value is ABSENT else f"{value!r:.80}"
