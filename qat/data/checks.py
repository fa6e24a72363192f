"""Checks of constructor arguments: each returns the value it accepts, or raises `ConfigError`."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from qat.errors import ConfigError, unknown_name

E = TypeVar("E", bound=StrEnum)


def at_least(name: str, value: int, minimum: int) -> int:
    """`value`, an integer of `minimum` or more; a bool or a float is refused."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"data.{name} must be an integer >= {minimum}, got {value!r}")
    return value


def member(kind: type[E], name: str, value: str) -> E:
    """The member of `kind` that is spelled `value`."""
    try:
        return kind(value)
    except ValueError:
        raise ConfigError(unknown_name(f"data.{name}", str(value), [str(known) for known in kind])) from None
