"""Quantization-aware training for PyTorch vision models: from float to proven int8.

prepared = qat.prepare(model, example_inputs, recipe="w8a8", target="onnxruntime")
qat.calibrate(prepared, batches)
# ... train ...
integer = qat.convert(prepared)
artifact = qat.export(integer, "model.onnx")
report = qat.verify(prepared, artifact, batches)

A name is imported when it is first used, so that `python -m qat.report` starts without torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qat.adaround import adaround
    from qat.artifact import Artifact
    from qat.bias_correction import correct_biases
    from qat.calibrate import calibrate
    from qat.convert import convert
    from qat.dynamic import quantize_dynamic
    from qat.equalize import equalize
    from qat.export import export
    from qat.keep_zeros import keep_zeros
    from qat.mixed import choose_bits
    from qat.parity import ParityReport, Tolerance
    from qat.placement import Plan, PreparedModel, prepare, quantizers
    from qat.recipe import QuantRecipe
    from qat.reestimate import reestimate_batchnorm
    from qat.sensitivity import Sensitivity, measure_sensitivity
    from qat.spec import Granularity, IntSpec, Scheme
    from qat.switches import fake_quant, freeze_batchnorm, observers, sync_batchnorm
    from qat.target import Target
    from qat.training import QuantizationAwareTraining
    from qat.verify import verify
    from qat.weight_only import quantize_weights

__all__ = [
    "Artifact",
    "Granularity",
    "IntSpec",
    "ParityReport",
    "Plan",
    "PreparedModel",
    "QuantRecipe",
    "QuantizationAwareTraining",
    "Scheme",
    "Sensitivity",
    "Target",
    "Tolerance",
    "adaround",
    "calibrate",
    "choose_bits",
    "convert",
    "correct_biases",
    "equalize",
    "export",
    "fake_quant",
    "freeze_batchnorm",
    "keep_zeros",
    "measure_sensitivity",
    "observers",
    "prepare",
    "quantize_dynamic",
    "quantize_weights",
    "quantizers",
    "reestimate_batchnorm",
    "sync_batchnorm",
    "verify",
]

_ROOMS = {
    "adaround": ("adaround",),
    "artifact": ("Artifact",),
    "bias_correction": ("correct_biases",),
    "calibrate": ("calibrate",),
    "convert": ("convert",),
    "dynamic": ("quantize_dynamic",),
    "equalize": ("equalize",),
    "export": ("export",),
    "keep_zeros": ("keep_zeros",),
    "mixed": ("choose_bits",),
    "parity": ("ParityReport", "Tolerance"),
    "placement": ("Plan", "PreparedModel", "prepare", "quantizers"),
    "recipe": ("QuantRecipe",),
    "reestimate": ("reestimate_batchnorm",),
    "sensitivity": ("Sensitivity", "measure_sensitivity"),
    "spec": ("Granularity", "IntSpec", "Scheme"),
    "switches": ("fake_quant", "freeze_batchnorm", "observers", "sync_batchnorm"),
    "target": ("Target",),
    "training": ("QuantizationAwareTraining",),
    "verify": ("verify",),
    "weight_only": ("quantize_weights",),
}
_HOMES = {name: f"{__name__}.{room}" for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
        return globals()[name]
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):  # qat.errors, qat.training, ...
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `qat.convert` the function, where the import of `qat/convert/` would put the module in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name, as modules are pickled that functions take along to other processes (Ray, joblib, Dask)."""
        return importlib.import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
