"""ONNX with QuantizeLinear / DequantizeLinear (QDQ), through torch.onnx and onnxscript.

What the stock exporter leaves to be done here:

    narrow activation grids   its QuantizeLinear drops quant_min / quant_max: a Clip on the integers puts them back
    pooling to 1 x 1          becomes GlobalAveragePool, which runtimes run on integers, instead of ReduceMean
    shared constants          each QuantizeLinear and DequantizeLinear gets its own zero point: onnxruntime's rewrite
                              of signed weights on CPUs without VNNI refuses a shared one
    narrow weights            are packed two to a byte (packing.py)
    names                     integers are called after the layer that makes them; the batch dimension is `batch`
    debris                    stack traces with paths of the exporting machine, a tenth of the file
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxscript
import onnxscript.optimizer
import torch
import torch.ao.quantization.fx._decomposed
from onnx_ir import passes
from onnxscript import opset21 as op
from onnxscript import rewriter
from onnxscript.rewriter.rules import common
from torch.export import ExportedProgram

from qat.artifact import Artifact
from qat.errors import ExportError
from qat.export.averages import require_plain_averages
from qat.export.decomposition import decomposed_when_needed
from qat.export.dynamic import dynamic_translations
from qat.export.packing import OPSET as PACKED_OPSET
from qat.export.packing import pack_weights
from qat.export.program import artifact_of, input_names, output_names
from qat.export.quiet import quiet
from qat.export.stored import read_when_loaded
from qat.files import replacing
from qat.target import Target

ATEN, GRID = torch.ops.aten, torch.ops.quantized_decomposed
SHAPE_RULES = rewriter.RewriteRuleSet(
    [
        common.materialize_reshape_shape_rule,
        common.squeeze_reshape_1d_rule,
        common.reshape_reshape_rule,
        common.flatten_to_reshape_rule,
        common.transpose_transpose_rule,
        common.unsqueeze_unsqueeze_rule,
        common.no_op_transpose_rule,
        common.no_op_expand_rule,
        common.no_op_cast_rule,
        common.cast_cast_rule,
        common.collapse_slice_rule,
        common.collapse_slice2_rule,
        common.matmul_add_to_gemm_rule,
        common.transpose_b_matmul_add_to_gemm_rule,
    ]
)  # what a graph of integers, its weights folded already, has to gain
LARGEST = 2**31 - 2**24  # bytes of weights: protobuf's limit, with room for the graph
LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")  # a line per constant that they merged
OPSET = 21  # int4 types and per-tensor attributes of QuantizeLinear


def write_onnx(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Artifact:
    """Translate, tidy up, check, and save; `about` is what `convert` knows of the model."""
    target: Target | None = about.get("target")
    require_plain_averages(program, integer=target is not None)
    model = _translate(program, target.opset if target else OPSET, integer=target is not None)
    _tidy(model, tuple(about.get("sites", ())), path)
    if target is not None and target.runtime == "onnxruntime" and target.opset >= PACKED_OPSET:
        pack_weights(model)
    if about.get("stored"):
        read_when_loaded(model)
    model.producer_name = "qat"
    model.metadata_props.update(about.get("metadata", {}))
    with replacing(path) as temporary:
        temporary.write_bytes(_serialized(model, path))
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ExportError(f"the ONNX checker rejects {path.name}: {error}") from error
    return artifact_of(program, path, about)


def _serialized(model: ir.Model, path: Path) -> bytes:
    constants = [value.const_value for value in model.graph.initializers.values()]
    size = sum(constant.nbytes for constant in constants if constant is not None)
    if size > LARGEST:
        raise ExportError(
            f"{path.name} would hold {size / 1e9:.1f} GB of weights, and an ONNX file ends at 2 GiB: quantize the "
            "model, or export it as .pt2"
        )
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]  # shapes follow from the inputs
    return proto.SerializeToString(deterministic=True)


def _translate(program: ExportedProgram, opset: int, *, integer: bool) -> ir.Model:
    try:
        with quiet(*LOGGERS):
            exported = torch.onnx.export(
                decomposed_when_needed(program),
                dynamo=True,
                opset_version=opset,
                optimize=not integer,
                verbose=False,
                input_names=input_names(program),
                output_names=output_names(program),
                custom_translation_table=_translations(program),
            )
    except Exception as error:
        cause = error.__cause__ or error
        raise ExportError(
            f"the ONNX exporter does not know how to write the model: {str(cause).strip().splitlines()[0]}. "
            "Replace that operator in forward, or pass a translation through torch.onnx's registry"
        ) from error
    assert exported is not None
    with quiet(*LOGGERS):
        return _simplify(exported.model) if integer else exported.model


def _simplify(model: ir.Model) -> ir.Model:
    """The exporter's own optimization without the rules that look for float operators, nine tenths of its time."""
    onnxscript.optimizer.inline(model)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    onnxscript.rewriter.rewrite(model, pattern_rewrite_rules=SHAPE_RULES)
    onnxscript.optimizer.fold_constants(model, onnx_shape_inference=True)
    passes.Sequential(
        passes.common.RemoveUnusedNodesPass(),
        passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.common.DeduplicateInitializersPass(),
        passes.common.CommonSubexpressionEliminationPass(),
        passes.common.OutputFixPass(),
        passes.common.NameFixPass(),
    )(model)
    return model


def _translations(program: ExportedProgram) -> dict[Any, Any]:
    table: dict[Any, Any] = {GRID.quantize_per_tensor.default: _quantize, **dynamic_translations()}
    pools = [n for n in program.graph.nodes if n.target is ATEN.adaptive_avg_pool2d.default]
    if pools and all(tuple(n.args[1]) in ((1, 1), (1,)) for n in pools):
        table[ATEN.adaptive_avg_pool2d.default] = _global_pool
    return table


def _quantize(x: Any, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: int) -> Any:
    storage = np.dtype(np.uint8 if dtype == ir.DataType.UINT8 else np.int8)
    q = op.QuantizeLinear(x, _constant(scale, np.float32), _constant(zero_point, storage))
    limits = np.iinfo(storage)
    if (quant_min, quant_max) == (limits.min, limits.max):
        return q
    return op.Clip(q, _constant(quant_min, storage), _constant(quant_max, storage))


def _constant(value: float, dtype: Any) -> Any:
    return op.Constant(value=ir.tensor(np.array(value, dtype)))  # type: ignore[arg-type]


def _global_pool(x: Any, output_size: Any) -> Any:
    return op.GlobalAveragePool(x)


def _tidy(model: ir.Model, sites: tuple[str, ...], path: Path) -> None:
    graph = model.graph
    own_constants = 0
    quantized = []
    model.metadata_props.clear()
    graph.metadata_props.clear()
    results = set(graph.outputs)
    for index, node in enumerate(graph):
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for position in range(1, len(node.inputs)):
                own_constants += _own_constant(graph, node, position, own_constants)
            scale = node.inputs[1]
            if scale is not None and scale.shape is not None and len(scale.shape) == 0:
                node.attributes.pop("axis", None)
            node.name = None
        if node.op_type == "QuantizeLinear":
            quantized.append(node)
        for position, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if value not in results:  # the exporter's names are long and say nothing
                value.name = f"v{index}" if position == 0 else f"v{index}_{position}"
    for name in [n for n, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
    for value in [*graph.inputs, *graph.outputs]:
        value.metadata_props.clear()
        _name_batch(value)
    if sites and len(quantized) != len(sites):
        raise ExportError(
            f"{path.name}: the exporter wrote {len(quantized)} QuantizeLinear for {len(sites)} quantized values; "
            f"it was tested with onnxscript 0.7, this is {onnxscript.__version__}"
        )
    for node, site in zip(quantized, sites, strict=False):
        node.outputs[0].name = f"{site}_quantized"


def _own_constant(graph: ir.Graph, node: ir.Node, position: int, count: int) -> int:
    """Give `node` an initializer of its own at `position` if it shares one; returns 1 when it did."""
    value = node.inputs[position]
    if value is None or value.const_value is None or len(value.uses()) == 1:
        return 0
    own = ir.Value(name=f"grid_constant_{count}", const_value=value.const_value, shape=value.shape, type=value.type)
    graph.register_initializer(own)
    node.replace_input_with(position, own)
    return 1


def _name_batch(value: ir.Value) -> None:
    if value.shape is not None and len(value.shape) and isinstance(value.shape[0], ir.SymbolicDim):
        value.shape = ir.Shape(["batch", *value.shape.dims[1:]])
