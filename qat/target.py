"""Where a model will run: a frozen value that decides numerics, export and runtime.

The targets are the files of `conf/target`; `Target.parse` reads one by name, from a mapping, or passes a value on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from qat.errors import ConfigError, unknown_name
from qat.presets import load_preset


@dataclass(frozen=True, kw_only=True)
class Target:
    """One runtime and what it computes exactly.

    Args:
        name: what plan and card call it.
        runtime: the module of `qat.runtime` that runs its artefact.
        artifact: file suffix of its artefact.
        opset: ONNX opset of the artefact.
        activation_signed: int8 activations when true, else uint8.
        weight_bits: widest weight whose products this runtime adds up exactly.
        weight_bits_reason: why not wider; shown in plan and card.

    Raises:
        ConfigError: for an unknown key or runtime, or weight bits outside 2-8.
    """

    name: str
    runtime: str = "onnxruntime"
    artifact: str = ".onnx"
    opset: int = 21
    activation_signed: bool = False
    weight_bits: int = 8
    weight_bits_reason: str = ""

    def __post_init__(self) -> None:
        """Validate."""
        bits = self.weight_bits
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ConfigError(f"need 2 <= target.weight_bits <= 8, got {bits!r}")
        if self.runtime not in RUNTIMES:
            raise ConfigError(unknown_name("runtime", self.runtime, RUNTIMES))

    @classmethod
    def parse(cls, value: str | Mapping[str, Any] | Target) -> Target:
        """A target from its name, from YAML's mapping, or as it is."""
        if isinstance(value, Target):
            return value
        if isinstance(value, str):
            value = load_preset("target", value)
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                raise ConfigError(unknown_name("key of a target", str(key), known))
        if "name" not in value:
            raise ConfigError("a target needs a name: name=my_target")
        return cls(**value)


RUNTIMES = ("onnxruntime", "torch")
