"""Where a model comes from: the section `model` of a config, as plain values.

    _target_: qat.models.torchvision.build     name, weights, options
    _target_: qat.models.timm.build            name, weights, options
    _target_: torchvision.models.NAME          the same as qat.models.torchvision.build with this name
    _target_: my_package.MyNet                 whatever it takes; `num_classes` where it takes that

A key whose value is null and that the component does not take is left out.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qat.component import Component
from qat.errors import ConfigError
from qat.models import torchvision
from qat.models.preprocessing import Preprocessing

TORCHVISION = "torchvision.models."
BUILD = "qat.models.torchvision.build"
PUBLISHERS = frozenset({BUILD, "qat.models.timm.build"})  # their modules offer preprocessing(name, weights) too


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A builder by its public path, and the options to call it with.

    Args:
        path: `package.module.Name`.
        options: Keyword arguments; `num_classes` among them only where it was given.
        takes_classes: Whether the builder has a parameter `num_classes`.
    """

    path: str
    options: Mapping[str, Any] = field(default_factory=dict)
    takes_classes: bool = True

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> ModelSource:
        """From the section of a config.

        Raises:
            ConfigError: `_target_` cannot be imported; `num_classes` for a builder that takes none.
        """
        options = dict(section)
        path = str(options.pop("_target_"))
        name = path.removeprefix(TORCHVISION).rpartition(".")[2]
        if path.startswith(TORCHVISION) and name in torchvision.NAMES:
            path, options = BUILD, {"name": name, **options}
        parameters = inspect.signature(Component(path=path).resolve()).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        given = {
            key: value
            for key, value in options.items()
            if value is not None or (key in parameters and key != "num_classes")
        }
        takes_classes = "num_classes" in parameters or open_ended
        if "num_classes" in given and not takes_classes:
            raise ConfigError(
                f"model.num_classes={given['num_classes']}, but {path} takes no num_classes; give it this parameter, "
                "or leave model.num_classes out and build it for the classes of the data"
            )
        return cls(path=path, options=given, takes_classes=takes_classes)

    @property
    def published(self) -> bool:
        """Whether it knows of published weights."""
        return self.path in PUBLISHERS

    @property
    def weights(self) -> str | None:
        """The published weights to start from; None starts afresh."""
        return self.options.get("weights") if self.published else None

    @property
    def num_classes(self) -> int | None:
        """As given; None leaves it to the data."""
        return self.options.get("num_classes")

    def preprocessing(self) -> Preprocessing | None:
        """How images were prepared for the published weights; None without such."""
        if not self.weights or "name" not in self.options:
            return None
        module = importlib.import_module(self.path.rpartition(".")[0])
        return module.preprocessing(self.options["name"], self.weights)

    def section(self, num_classes: int, *, reset_head: bool = False, fresh: bool = False) -> dict[str, Any]:
        """The section to build from.

        Args:
            num_classes: Passed on where the builder takes it.
            reset_head: With published weights, whether the head stays as initialised.
            fresh: Leave the published weights out.
        """
        options = {key: value for key, value in self.options.items() if not (fresh and key == "weights")}
        more: dict[str, Any] = {"num_classes": num_classes} if self.takes_classes else {}
        if self.weights and not fresh:
            more["reset_head"] = reset_head
        return {"_target_": self.path, **options, **more}
