"""What XNNPACK was given: the graph in a delegate's payload, read by the schema and the `flatc` that ExecuTorch brings.

    payload = header | flatbuffer of the graph | constants

A node computes on what its first input is: qint8 and quint8 are integers, fp32 is not, whatever its weights are.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from executorch.backends.xnnpack import serialization
from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
from executorch.exir._serialize._flatbuffer import _flatc_decompile

from qat.runtime.coverage import Executed, Kind

BACKEND = "XnnpackBackend"
CONVERT = "XNNConvert"  # its quantize and dequantize

ENDLESS = re.compile(r"\binf\b")  # flatc's word for it, which is none of JSON


@dataclass(frozen=True, kw_only=True)
class Delegate:
    """The operators of one payload.

    Attributes:
        operators: in XNNPACK's order.
        inputs: for each external input, the operators that read it.
        outputs: for each external output, the operator that writes it.
    """

    operators: tuple[Executed, ...]
    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]


def read_delegate(payload: bytes, prefix: str) -> Delegate:
    """The graph of a payload, every operator's name beginning with `prefix`."""
    graph = _graph(payload)
    types = {}
    for value in graph["xvalues"]:
        union = value["xvalue_union"]
        tensor = union.get("tensor_value", union)  # a quantized value holds a plain one
        types[tensor["id_out"]] = tensor["datatype"].removeprefix("xnn_datatype_")
    made_by: dict[int, str] = {}
    readers: dict[int, list[str]] = {}
    operators = []
    for i, node in enumerate(graph["xnodes"]):
        op, fields = node["xnode_union_type"], node["xnode_union"]
        name, reads = f"{prefix}{i}", _reads(fields)
        sources = tuple(made_by[v] for v in reads if v in made_by)
        operators.append(Executed(name=name, op=op, kind=_kind(op, types[reads[0]]), inputs=sources))
        for value in reads:
            readers.setdefault(value, []).append(name)
        made_by[fields.get("output_id", fields.get("output_value_id"))] = name
    return Delegate(
        operators=tuple(operators),
        inputs=tuple(tuple(readers.get(v, ())) for v in graph["input_ids"]),
        outputs=tuple(made_by.get(v, "") for v in graph["output_ids"]),
    )


def _kind(op: str, reads: str) -> Kind:
    if op == CONVERT:
        return Kind.BORDER
    return Kind.FLOAT if reads in ("fp32", "fp16", "pfp32") else Kind.INTEGER


def _reads(fields: Mapping[str, Any]) -> list[int]:
    """Values that a node reads, constants left out."""
    keys = ("input_id", "query_id", "key_id", "value_id", *(f"input{i}_id" for i in range(1, 6)))
    return [fields[key] for key in keys if key in fields]


def _graph(payload: bytes) -> dict[str, Any]:
    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    begin = header.flatbuffer_offset
    with tempfile.TemporaryDirectory() as folder:
        schema, stored = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes((files(serialization) / "schema.fbs").read_bytes())
        stored.write_bytes(payload[begin : begin + header.flatbuffer_size])
        _flatc_decompile(folder, str(schema), str(stored), ["--raw-binary"])
        text = stored.with_suffix(".json").read_text()
    graph: dict[str, Any] = json.loads(ENDLESS.sub("Infinity", text))
    return graph
