"""OpenVINO IR: the QDQ graph of the ONNX file, read by OpenVINO's own ONNX frontend.

It writes a quantize / dequantize pair as one FakeQuantize, weights as i8 constants; each FakeQuantize is called after
the layer whose integers it makes. Two files: `.xml` (graph, metadata) beside `.bin` (weights).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import openvino
from torch.export import ExportedProgram

from qat.artifact import Artifact
from qat.errors import ExportError
from qat.export.onnx import write_onnx
from qat.files import replacing

METADATA = ["qat", "metadata"]


def write_openvino(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Artifact:
    """Write the ONNX file aside, convert it, and save both files; `about` is what `convert` knows of the model."""
    with tempfile.TemporaryDirectory() as folder:
        written = write_onnx(program, Path(folder) / "model.onnx", about)
        sites = _sites_by_value(onnx.load(written.path))
        try:
            model = openvino.convert_model(written.path)
        except Exception as error:
            raise ExportError(f"openvino {openvino.__version__} cannot read the ONNX graph: {error}") from error
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize":
            _name(node, sites)
    model.set_rt_info(json.dumps(about.get("metadata", {})), METADATA)
    with replacing(path.with_suffix(".bin")) as weights, replacing(path) as graph:
        openvino.serialize(model, graph, weights)
    return replace(written, path=path)


def _sites_by_value(model: onnx.ModelProto) -> dict[str, str]:
    """Site of every dequantized activation, by the name of that value."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and (source := made_by.get(node.input[0])) is not None:
            while source.op_type != "QuantizeLinear" and source.input[0] in made_by:  # Clip, Pad: on the integers
                source = made_by[source.input[0]]
            found[node.output[0]] = source.output[0].removesuffix("_quantized")
    return found


def _name(quantizer: openvino.Node, sites: Mapping[str, str]) -> None:
    values = [*quantizer.output(0).get_names(), quantizer.get_friendly_name()]
    site = next((sites[name] for name in values if name in sites), None)
    if site is not None:
        quantizer.set_friendly_name(site)
