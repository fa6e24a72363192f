"""Where an artefact's time goes: onnxruntime's own profile, by the operators of the stored graph.

onnxruntime renames what it fuses (`node_conv2d` runs as `node_conv2d_token_9`) and adds operators of its own. Each
timed operator is led back to the stored one of the longest name that it starts with, and that one to the weight it
reads and to the quantized value it writes. What is left, changes of layout and the borders of the model, is `other`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from torch import Tensor

from qat.artifact import Artifact
from qat.errors import ArtifactError

EVENT = "_kernel_time"
FUSED = "_token_"
WARM_UP = 3  # first calls plan memory, and are not counted


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Milliseconds of one call, by operator.

    Attributes:
        by_weight: of operators with a weight, by the weight's name.
        by_site: of the others, by the name of the value that they write as integers.
        other: of what belongs to neither.
    """

    by_weight: Mapping[str, float]
    by_site: Mapping[str, float]
    other: float


def profile(artifact: Artifact, x: Tensor, *, repeats: int = 20, threads: int = 1) -> Profile | None:
    """The profile over `repeats` calls, medians; None for an artefact that onnxruntime does not run.

    Args:
        artifact: an `.onnx` artefact.
        x: one input, `[N, ...]`.
        repeats: calls that are counted.
        threads: threads inside one operator.

    Raises:
        ArtifactError: the runtime refuses the file.
    """
    if artifact.kind != ".onnx":
        return None
    graph = onnx.load(artifact.path, load_external_data=False).graph
    weights, sites = _owners(graph)
    names = sorted((node.name for node in graph.node if node.name), key=len, reverse=True)
    by_weight: dict[str, float] = {}
    by_site: dict[str, float] = {}
    other = 0.0
    for event, ms in _events(artifact, x, repeats, threads).items():
        stored = next((n for n in names if event == n or event.startswith(n + FUSED)), "")
        if stored in weights:
            by_weight[weights[stored]] = by_weight.get(weights[stored], 0.0) + ms
        elif stored in sites:
            by_site[sites[stored]] = by_site.get(sites[stored], 0.0) + ms
        else:
            other += ms
    return Profile(by_weight=by_weight, by_site=by_site, other=other)


def _events(artifact: Artifact, x: Tensor, repeats: int, threads: int) -> dict[str, float]:
    options = ort.SessionOptions()
    options.enable_profiling, options.intra_op_num_threads = True, threads
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(artifact.path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError(f"onnxruntime {ort.__version__} refuses {artifact.path.name}: {error}") from error
        feed = {session.get_inputs()[0].name: np.ascontiguousarray(x.detach().cpu().numpy())}
        for _ in range(WARM_UP + repeats):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(EVENT):
            found.setdefault(event["name"].removesuffix(EVENT), []).append(event["dur"] / 1e3)
    return {name: float(np.median(times[WARM_UP:])) for name, times in found.items()}


def _owners(graph: onnx.GraphProto) -> tuple[dict[str, str], dict[str, str]]:
    """The weight that each named operator reads, and the quantized value that it writes in the end."""
    stored = {i.name for i in graph.initializer}
    made_of = {node.output[0]: node for node in graph.node if node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in node.input:
            readers.setdefault(value, []).append(node)
    weights, sites = {}, {}
    for node in graph.node:
        if not node.name or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        second = node.input[1] if len(node.input) > 1 else ""
        while second in made_of and made_of[second].op_type in ("DequantizeLinear", "Cast", "Transpose"):
            second = made_of[second].input[0]
        if second in stored and second.endswith("weight"):
            weights[node.name] = second.removesuffix(".weight")
            continue
        last: onnx.NodeProto | None = node
        while last is not None and last.op_type != "QuantizeLinear":
            following = readers.get(last.output[0], [])
            last = following[0] if len(following) == 1 else None
        if last is not None:
            sites[node.name] = last.output[0].removesuffix("_quantized")
    return weights, sites
