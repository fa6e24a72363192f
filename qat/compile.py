"""The regional compile: the epilogues of a prepared model in fused loops.

Only what follows the convolutions is compiled, and one compile serves all layers, so it costs seconds where compiling
the whole model costs minutes (functional/regional.py).
"""

from __future__ import annotations

from torch import nn

from qat.functional.regional import loops
from qat.layers.batchnorm import _FakeQuantBatchNorm


def compile_regions(model: nn.Module, *, enabled: bool = True) -> bool:
    """Run BatchNorm, activation and quantizer of each layer below `model` through compiled loops, or eagerly again.

    Compiles at once; torch keeps the result on disk, so a later run takes a second or two. Works before and after
    copies, pickles and moves to another device. Where nothing can be compiled it warns, and the model stays eager.

    Args:
        model: a prepared model, or a module that holds one.
        enabled: False for eager operators.

    Returns:
        Whether the loops are compiled.
    """
    epilogues = [m for m in model.modules() if isinstance(m, _FakeQuantBatchNorm)]
    works = enabled and all(loops(kind) for kind in {m.weight.device.type for m in epilogues})
    for epilogue in epilogues:
        epilogue.regional = works
    return works
