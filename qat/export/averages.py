"""Average pooling that the way to the runtime would change, refused.

`divisor_override` has no attribute in ONNX, and the exporter drops it. A window that `ceil_mode` lets reach past the
end of its input is averaged over what lies inside; onnxruntime 1.32 does so in float, but its QLinearAveragePool, which
it makes of the pairs around one, does not: up to 181 steps off at the border.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from qat.errors import ExportError

ATEN = torch.ops.aten
POOLS = (ATEN.avg_pool1d.default, ATEN.avg_pool2d.default, ATEN.avg_pool3d.default)


def require_plain_averages(program: ExportedProgram, *, integer: bool) -> None:
    """Refuse what ONNX would change, and in a file of integers also what onnxruntime would.

    Raises:
        ExportError: average pooling with a divisor of its own, or with a window past the end of its input.
    """
    for node in program.graph.nodes:
        if node.target not in POOLS:
            continue
        kernel, stride, padding, ceil_mode, _, divisor = _settings(node)
        if divisor is not None:
            raise ExportError(
                f"{node.name}: average pooling with divisor_override={divisor}, which ONNX cannot say; leave it out, "
                "and multiply the result by kernel size / divisor"
            )
        if integer and ceil_mode and any(_past_the_end(node, kernel, stride, padding)):
            size = tuple(node.args[0].meta["val"].shape[2:])
            raise ExportError(
                f"{node.name}: ceil_mode=True on a size of {size} leaves a window that reaches past the end, and "
                "onnxruntime's integer pooling computes something else there; pad the input, use ceil_mode=False, or a "
                "size that the stride divides"
            )


def _settings(node: fx.Node) -> tuple[Any, ...]:
    given: tuple[Any, ...] = node.args[1:]
    kernel = given[0]
    defaults = (kernel, kernel, [0] * len(kernel), False, True, None)
    settings = (*given, *defaults[len(given) :])
    return (settings[0], settings[1] or kernel, *settings[2:])


def _past_the_end(
    node: fx.Node, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Iterator[bool]:
    source, result = node.all_input_nodes[0].meta["val"].shape, node.meta["val"].shape
    spatial = len(kernel)
    for n, out, k, s, p in zip(source[-spatial:], result[-spatial:], kernel, stride, padding, strict=False):
        if all(isinstance(v, int) for v in (n, out)):
            yield (out - 1) * s + k > n + 2 * p
