"""Dicts, lists and tuples as one input of forward, while it is traced: what forward sees, and what that fixes.

Entries are read from the input in the order in which forward asks for them. What a trace cannot leave open is noted as
a fact, which a later call of the graph has to meet: a setting that was read, a key that was asked for, all keys where
forward went over them, the length of a list.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

from qat.inputs import SETTINGS

OPENED = (dict, OrderedDict, list, tuple)  # exactly these: others may have attributes and methods of their own
VALUE, HAS, KEYS, LENGTH = "value", "has", "keys", "length"


class Asked(NamedTuple):
    """What was asked of an input.

    Attributes:
        what: the value of a setting, whether a key is there, all keys, or the length.
        path: the argument's name, and keys or positions from there.
    """

    what: str
    path: tuple[Any, ...]


Facts = dict[Asked, Any]
Read = Callable[[Any, Any, str], Any]  # from a container, the entry of a key, under a name


def opened(value: Any, example: Any, path: tuple[Any, ...], read: Read, facts: Facts) -> Any:
    """What forward sees for an input: the proxy itself, or a container whose entries are read from it.

    Args:
        value: a proxy of the input.
        example: what it stands for.
        path: the argument's name, and keys or positions from there.
        read: makes a proxy of an entry.
        facts: are noted here.
    """
    if type(example) not in OPENED:
        return value

    def entry(key: Any) -> Any:
        like, here = example[key], (*path, key)
        if isinstance(like, SETTINGS):
            facts[Asked(VALUE, here)] = like
            return like
        return opened(read(value, key, "_".join(map(str, here))), like, here, read, facts)

    if isinstance(example, dict):
        return OpenedDict(example, path, entry, facts)
    facts[Asked(LENGTH, path)] = len(example)
    # text in a list is mostly a name of each example, which nobody reads: it is no setting
    return type(example)(
        read(value, i, "_".join(map(str, (*path, i)))) if isinstance(like, str) else entry(i)
        for i, like in enumerate(example)
    )


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
            self._facts[Asked(HAS, (*self._path, key))] = key in self._keys
        return key in self._now

    def __getitem__(self, key: Any) -> Any:
        if key in self and key not in self._own:
            self[key] = self._read(key)
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
        self._facts[Asked(KEYS, self._path)] = self._keys
        return iter(self._now)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(list(self))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    def __ror__(self, other: Any) -> Any:
        return other | dict(self)

    def copy(self) -> dict[Any, Any]:
        """A dict of all entries."""
        return dict(self)
