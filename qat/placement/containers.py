"""Dicts, lists and tuples as one input of forward, while it is traced: what forward sees, and what that fixes.

Entries are read from the input in the order in which forward asks for them. What a trace cannot leave open is noted as
a fact, which a later call of the graph has to meet: a setting that was read, a key that was asked for, no other keys
where forward went over them, the number of entries. An entry that forward took and did not use may be missing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from enum import StrEnum, auto
from typing import Any, NamedTuple

from torch import fx

from qat.inputs import SETTINGS

OPENED = (dict, OrderedDict, list, tuple)  # exactly these: others may have attributes and methods of their own


class What(StrEnum):
    """Kinds of facts: the value of a setting, whether a key is there, all keys there may be, the number of entries."""

    VALUE = auto()
    HAS = auto()
    KEYS = auto()
    LENGTH = auto()


class Asked(NamedTuple):
    """What was asked of an input.

    Attributes:
        what: kind of the fact.
        path: the argument's name, and keys or positions from there.
    """

    what: What
    path: tuple[Any, ...]


Facts = dict[Asked, Any]
Read = Callable[[Any, tuple[Any, ...], Any], Any]  # of a container's proxy, path and example of an entry: its proxy


def opened(value: Any, example: Any, path: tuple[Any, ...], read: Read, facts: Facts) -> Any:
    """What forward sees for an input: the proxy itself, or a container whose entries are read from it.

    Args:
        value: a proxy of the input.
        example: what it stands for.
        path: the argument's name, and keys or positions from there.
        read: makes a proxy of an entry.
        facts: are noted here.
    """
    if type(example) not in OPENED or _is_text(example):
        return value

    def entry(key: Any) -> Any:
        like, here = example[key], (*path, key)
        if isinstance(like, SETTINGS):
            facts[Asked(What.VALUE, here)] = like
            return like
        return opened(read(value, here, like), like, here, read, facts)

    if isinstance(example, dict):
        return OpenedDict(example, path, entry, facts)
    facts[Asked(What.LENGTH, path)] = len(example)
    return type(example)(entry(i) for i in range(len(example)))


def _is_text(example: Any) -> bool:
    """A list of names, as loaders make of each example's, which mostly nobody reads."""
    return isinstance(example, list | tuple) and bool(example) and all(isinstance(x, str) for x in example)


class OpenedDict(MutableMapping[Any, Any], dict[Any, Any]):  # type: ignore[misc, metaclass]  # a dict for isinstance
    """A dict of an example's keys, with the methods of a mapping; values are read when they are asked for."""

    def __init__(self, example: Mapping[Any, Any], path: tuple[Any, ...], read: Callable[[Any], Any], facts: Facts):
        super().__init__()
        self._now: dict[Any, Any] = dict(example)
        self._path, self._read, self._facts = path, read, facts
        self._keys = tuple(example)
        self._own: set[Hashable] = set()  # keys that were read, written or removed

    def __contains__(self, key: object) -> bool:
        if key not in self._own:
            self._facts[Asked(What.HAS, (*self._path, key))] = key in self._keys
        return key in self._now

    def __getitem__(self, key: Any) -> Any:
        if key not in self._own:
            if key in self._keys:
                self[key] = self._read(key)
            else:
                self._facts[Asked(What.HAS, (*self._path, key))] = False
        return self._now[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._own.add(key)
        self._now[key] = value

    def __delitem__(self, key: Any) -> None:
        present = key in self
        self._own.add(key)
        if present:
            del self._now[key]

    def __iter__(self) -> Iterator[Any]:
        self._facts[Asked(What.KEYS, self._path)] = self._keys
        return iter(self._now)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(list(self))

    def __len__(self) -> int:
        self._facts[Asked(What.LENGTH, self._path)] = len(self._keys)
        return len(self._now)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def __ior__(self, other: Any) -> Any:
        for key, value in dict(other).items():
            self[key] = value
        return self

    def __eq__(self, other: object) -> bool:
        return len(self) >= 0 and dict(self) == other  # asked for its length as well

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __copy__(self) -> dict[Any, Any]:
        return dict(self)

    def __deepcopy__(self, memo: Any) -> Any:
        raise fx.proxy.TraceError("copy.deepcopy of an input")

    def popitem(self) -> tuple[Any, Any]:
        """The last entry, taken out."""
        keys = list(self)
        if not keys:
            raise KeyError("popitem(): dictionary is empty")
        key = keys[-1]
        value = self[key]
        del self[key]
        return key, value

    def copy(self) -> dict[Any, Any]:
        """A dict of all entries."""
        return dict(self)
