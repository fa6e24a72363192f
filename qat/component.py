"""A class named in YAML: `{_target_: qat.observers.MovingAverage, momentum: 0.05}` as a frozen value.

The spelling is Hydra's, so a recipe reads the same in a config group and in Python, where no Hydra is needed.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Component:
    """A public dotted path and the options to build it with.

    Args:
        path: `package.module.Name`.
        options: keyword arguments that the config sets.

    Raises:
        ConfigError: when nothing callable is found at the path, or it does not take an option.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Resolve once, so that a wrong path or option fails where the recipe is read."""
        made = self.resolve()
        if not callable(made):
            raise ConfigError(f"_target_ {self.path!r} is {made!r}, not a class. Name one as package.module.Name")
        try:
            parameters = inspect.signature(made).parameters
        except ValueError:  # a builtin does not tell; it will judge its options itself
            return
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        unknown = [] if takes_any else [k for k in self.options if k not in parameters]
        if unknown:
            raise ConfigError(f"{self.path} takes no option {', '.join(unknown)}; it takes {', '.join(parameters)}")

    @classmethod
    def parse(cls, value: Mapping[str, Any] | Component) -> Component:
        """From YAML's mapping with `_target_`."""
        if isinstance(value, Component):
            return value
        options = dict(value)
        path = options.pop("_target_", None)
        if not isinstance(path, str):
            raise ConfigError(f"need a mapping with _target_: package.module.Name, got {dict(value)!r}")
        return cls(path=path, options=options)

    def resolve(self) -> Callable[..., Any]:
        """The class or function at the path."""
        module, _, name = self.path.rpartition(".")
        try:
            return getattr(importlib.import_module(module), name)
        except ConfigError:  # of ours, about an extra that is not installed
            raise
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"_target_ {self.path!r} cannot be imported: {error}. Name a public class as package.module.Name"
            ) from None

    def build(self, **more: Any) -> Any:
        """An instance; `more` is what the caller adds to the options."""
        return self.resolve()(**{**self.options, **more})

    def build_later(self) -> Callable[..., Any]:
        """A function that builds with what it is given."""
        return lambda **more: self.build(**more)
