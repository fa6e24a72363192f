"""Quantization-aware training for PyTorch vision models: from float to proven int8.

prepared = qat.prepare(model, example_inputs, recipe="w8a8", target="onnxruntime")
qat.calibrate(prepared, batches)
# ... train ...
integer = qat.convert(prepared)
artifact = qat.export(integer, "model.onnx")
report = qat.verify(prepared, artifact, batches)
"""

from qat.artifact import Artifact
from qat.calibrate import calibrate
from qat.convert import convert
from qat.export import export
from qat.placement import Plan, PreparedModel, prepare, quantizers
from qat.recipe import QuantRecipe
from qat.spec import Granularity, IntSpec, Scheme
from qat.switches import fake_quant, freeze_batchnorm, observers
from qat.target import Target
from qat.verify import ParityReport, Tolerance, verify

__all__ = [
    "Artifact",
    "Granularity",
    "IntSpec",
    "ParityReport",
    "Plan",
    "PreparedModel",
    "QuantRecipe",
    "Scheme",
    "Target",
    "Tolerance",
    "calibrate",
    "convert",
    "export",
    "fake_quant",
    "freeze_batchnorm",
    "observers",
    "prepare",
    "quantizers",
    "verify",
]
