"""Where a model will run: a frozen value that decides numerics, export and runtime.

The targets are the files of `conf/target`; `Target.parse` reads one by name, from a mapping, or passes a value on.
One training serves several targets when they agree on the grids (`joint`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from qat.errors import ConfigError, unknown_name
from qat.presets import load_preset

# runtime -> the file suffix of its artefacts
RUNTIMES = {"onnxruntime": ".onnx", "torch": ".pt2", "openvino": ".xml", "executorch": ".pte", "inductor": ".pt2"}

# activations that are no clamp, by the names of their functions in torch
CURVES = ("sigmoid", "silu", "gelu", "hardswish", "hardsigmoid", "tanh", "elu", "leaky_relu")
TAKE_IN = {"conv_curves": "convolution", "linear_curves": "linear layer"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """One runtime and what it computes exactly.

    Args:
        name: what plan and card call it.
        runtime: the module of `qat.runtime` that runs its artefact.
        artifact: file suffix of its artefact.
        opset: ONNX opset of the artefact.
        activation_signed: int8 activations when true, else uint8.
        activation_symmetric: activations have no zero point.
        narrow_activations: whether an activation of fewer than 8 bits keeps to its grid in this runtime.
        weight_bits: widest weight whose products this runtime adds up exactly.
        weight_bits_reason: why not wider; shown in plan and card.
        needs_vnni: whether an x86 CPU without VNNI saturates its sums.
        float_bias: biases are stored in float, and the runtime rounds them to int32 itself.
        sums_round_once: a convolution and the addition behind it are one operator, which does not round between them.
        conv_curves: activations that a 2-d convolution takes in, so that nothing is rounded between them; of sigmoid,
            silu, gelu, hardswish, hardsigmoid, tanh, elu, leaky_relu.
        linear_curves: the same of a linear layer.
        opens_gates: SiLU and Hardswish are a gate and a product of integers, and hardsigmoid is a sum, for a runtime
            that would compute them in float; a model that was trained so runs in every other runtime as well.

    Raises:
        ConfigError: for an unknown key, runtime or curve, a suffix that the runtime does not read, or weight bits
            outside 2-8.
    """

    name: str
    runtime: str = "onnxruntime"
    artifact: str = ".onnx"
    opset: int = 21
    activation_signed: bool = False
    activation_symmetric: bool = False
    narrow_activations: bool = True
    weight_bits: int = 8
    weight_bits_reason: str = ""
    needs_vnni: bool = False
    float_bias: bool = False
    sums_round_once: bool = False
    conv_curves: tuple[str, ...] = ()
    linear_curves: tuple[str, ...] = ()
    opens_gates: bool = False

    def __post_init__(self) -> None:
        """Validate."""
        bits = self.weight_bits
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ConfigError(f"need 2 <= target.weight_bits <= 8, got {bits!r}")
        if self.runtime not in RUNTIMES:
            raise ConfigError(unknown_name("runtime", self.runtime, RUNTIMES))
        if self.artifact != RUNTIMES[self.runtime]:
            raise ConfigError(f"{self.runtime} reads {RUNTIMES[self.runtime]}, got target.artifact={self.artifact!r}")
        for key in TAKE_IN:
            curves = getattr(self, key)
            if isinstance(curves, str) or not isinstance(curves, Sequence):
                raise ConfigError(f"target.{key} is a list of names, [silu, hardswish] say; got {curves!r}")
            for curve in curves:
                if curve not in CURVES:
                    raise ConfigError(unknown_name(f"name in target.{key}", str(curve), CURVES))
            object.__setattr__(self, key, tuple(curves))

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

    def differences(self, other: Target) -> tuple[str, ...]:
        """Where a model trained for `other` has grids that this target does not compute on; empty when it may run."""
        found = [
            f"{key} is {getattr(self, key)} for {self.name} and {getattr(other, key)} for {other.name}"
            for key in ("activation_signed", "activation_symmetric")
            if getattr(self, key) != getattr(other, key)
        ]
        if other.weight_bits > self.weight_bits:  # a narrower weight is on the wider grid too
            found.append(
                f"weight_bits is {self.weight_bits} at most for {self.name}, {other.weight_bits} for {other.name}"
            )
        if self.runtime == "torch":  # computes the graph as it is
            return tuple(found)
        if other.sums_round_once and not self.sums_round_once:
            found.append(
                f"{self.name} rounds a convolution before it is added to something, and {other.name} does not "
                "(sums_round_once)"
            )
        for key, what in TAKE_IN.items():
            more = [curve for curve in getattr(other, key) if curve not in getattr(self, key)]
            if more:
                some = ", ".join(more[:3]) + (f" and {len(more) - 3} more" if len(more) > 3 else "")
                found.append(f"{self.name} rounds a {what} before {some}, and {other.name} does not ({key})")
        return tuple(found)


def joint(targets: Sequence[Target]) -> Target:
    """The first target on grids that all of `targets` compute exactly: train for it, export to each.

    Raises:
        ConfigError: none given, or they differ in what training must know; says in what.
    """
    if not targets:
        raise ConfigError("need at least one target; start from target=onnxruntime")
    narrowest = min(targets, key=lambda t: t.weight_bits)
    first = replace(
        targets[0],
        weight_bits=narrowest.weight_bits,
        weight_bits_reason=narrowest.weight_bits_reason,
        narrow_activations=all(t.narrow_activations for t in targets),
        sums_round_once=all(t.sums_round_once for t in targets),
        conv_curves=_of_all([t.conv_curves for t in targets]),
        linear_curves=_of_all([t.linear_curves for t in targets]),
    )
    differ = [line for target in targets[1:] for line in target.differences(first)]
    if differ:
        raise ConfigError(
            f"one training cannot serve {', '.join(t.name for t in targets)}: {'; '.join(differ)}. "
            "Train once for each, or leave one out"
        )
    return first


def _of_all(curves: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(curve for curve in curves[0] if all(curve in other for other in curves))
