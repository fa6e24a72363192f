"""OpenVINO IR: the QDQ graph of the ONNX file, read by OpenVINO's own ONNX frontend.

It writes a quantize / dequantize pair as one FakeQuantize, weights as i8 constants; each FakeQuantize is called after
the layer whose integers it makes. Two files: `.xml` (graph, metadata) beside `.bin` (weights).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import openvino
from openvino import opset8 as opset
from torch.export import ExportedProgram

from qat.artifact import Artifact
from qat.errors import ExportError
from qat.export.onnx import write_onnx
from qat.files import replacing

METADATA = ["qat", "metadata"]
MOVES = {"MaxPool", "Reshape", "Slice", "Split", "Squeeze", "StridedSlice", "Transpose", "Unsqueeze", "VariadicSplit"}
SIXTH, HALF = np.float32(1 / 6), np.float32(0.5)  # HardSigmoid(x) = clip(x / 6 + 1/2, 0, 1) = relu6(x + 3) / 6
BETWEEN_TAGS = re.compile(r">\s+<")  # two fifths of the graph's text are line breaks and tabs


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
            if _repeats(node):
                node.output(0).replace(node.input_value(0))
            else:
                _share_ends(node)
        elif node.get_type_name() == "HardSigmoid":
            _with_kernel(node)
    model.set_rt_info(json.dumps(about.get("metadata", {})), METADATA)
    with replacing(path.with_suffix(".bin")) as weights, replacing(path) as graph:
        openvino.serialize(model, graph, weights)
        graph.write_text(_shortened(graph.read_text(encoding="utf-8"), written), encoding="utf-8")
    return replace(written, path=path)


def _shortened(text: str, artifact: Artifact) -> str:
    """The graph without what OpenVINO infers when it reads it, half of the text.

    Shapes of what an operator reads and writes, element types of what it reads, names of constants, names of values
    that are no input and no output.
    """
    root = ElementTree.fromstring(BETWEEN_TAGS.sub("><", text))
    ends = {*artifact.inputs, *artifact.outputs}
    for layer in root.iter("layer"):
        if layer.get("type") == "Const":
            layer.set("name", f"c{layer.get('id')}")
        for port in [*layer.iterfind("input/port"), *layer.iterfind("output/port")]:
            port[:] = [child for child in port if child.tag != "dim"]
            if not ends & set(port.get("names", "").split(",")):
                port.attrib.pop("names", None)
        for port in layer.iterfind("input/port"):
            port.attrib.pop("precision", None)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


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


def _with_kernel(sigmoid: openvino.Node) -> None:
    """Torch's hardsigmoid as HSigmoid: for HardSigmoid, of any slope, OpenVINO has a reference implementation alone."""
    slope, offset = (sigmoid.input_value(i).get_node() for i in (1, 2))
    if all(n.get_type_name() == "Constant" for n in (slope, offset)) and (slope.data, offset.data) == (SIXTH, HALF):
        same = opset.hsigmoid(sigmoid.input_value(0))
        same.set_friendly_name(sigmoid.get_friendly_name())
        sigmoid.output(0).replace(same.output(0))


def _repeats(quantizer: openvino.Node) -> bool:
    """Whether its input was only moved since a quantizer with the same grid; it stands between operators then.

    OpenVINO would take a channel shuffle apart for it: shufflenet_v2_x1_0 took 1.2 to 1.3 times as long.
    """
    source = quantizer.input_value(0).get_node()
    while source.get_type_name() in MOVES:
        source = source.input_value(0).get_node()
    return source.get_type_name() == "FakeQuantize" and _grid(source) == _grid(quantizer)


def _grid(quantizer: openvino.Node) -> tuple[object, ...]:
    ends = (quantizer.input_value(i).get_node() for i in range(1, 5))
    return quantizer.get_attributes()["levels"], *(tuple(np.ravel(end.get_data()).tolist()) for end in ends)


def _share_ends(quantizer: openvino.Node) -> None:
    """Let its outer ends be its inner ones where they are equal: two constants less to write."""
    for inner, outer in ((1, 3), (2, 4)):
        source, other = (quantizer.input_value(i) for i in (inner, outer))
        if np.array_equal(source.get_node().get_data(), other.get_node().get_data()):
            quantizer.input(outer).replace_source_output(source)


def _name(quantizer: openvino.Node, sites: Mapping[str, str]) -> None:
    values = [*quantizer.output(0).get_names(), quantizer.get_friendly_name()]
    site = next((sites[name] for name in values if name in sites), None)
    if site is not None:
        quantizer.set_friendly_name(site)
