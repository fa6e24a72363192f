r"""Other spellings of a model's tensors: what programs did to its layers, undone by name.

    spelled                                  means                          by
    X.weight_fake_quant.scale, ...           nothing: a quantizer           torch.ao, qat
    X.bn.running_mean                        N.running_mean                 torch.ao: convolution and BatchNorm in one
    X.0.weight, X.1.running_mean             X.weight, N.running_mean       the same before prepare_qat: Sequential
    denselayer1.norm.1.weight                denselayer1.norm1.weight       torchvision's old DenseNet files

N is the BatchNorm behind the layer X, the next module of the model that has running statistics. A name that the model
itself has is never another one.
"""

from __future__ import annotations

import re
from collections.abc import Collection

QUANTIZER = re.compile(r"(\w+_)?quantizer(_\d+)?|weight_fake_quant|(\w+_)?activation_post_process(_\d+)?")
DENSE = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")
STATISTICS = "running_mean"  # what BatchNorm has and no other layer


class Spelling:
    """Reads the names of one checkpoint as those of one model.

    Args:
        names: The checkpoint's, after stripping and renaming.
        wanted: The model's own, in the order of its state dict.
    """

    def __init__(self, names: Collection[str], wanted: Collection[str]) -> None:
        self._wanted = wanted
        self._norm_behind: dict[str, str] = {}
        layer = ""
        for module in dict.fromkeys(key.rpartition(".")[0] for key in wanted):
            if f"{module}.{STATISTICS}" in wanted:
                self._norm_behind.setdefault(layer, module)
                layer = ""  # a second BatchNorm is not behind the layer any more
            elif f"{module}.weight" in wanted:
                layer = module
        # layers that are a Sequential in the checkpoint; where there are some, others may be one with a ReLU alone
        self._fused = {layer for layer in self._norm_behind if layer and f"{layer}.1.{STATISTICS}" in names}

    def read(self, name: str) -> str | None:
        """The model's name for `name`; itself where it means nothing else, None for a quantizer's tensor."""
        if name in self._wanted:
            return name
        if is_quantizer(name):
            return None
        layer, _, tensor = name.rpartition(".")
        layer, _, part = layer.rpartition(".")
        meant = name
        if dense := DENSE.fullmatch(name):
            meant = dense[1] + dense[2]
        elif part == "bn" or (part == "1" and layer in self._fused):
            meant = f"{self._norm_behind.get(layer, '')}.{tensor}"
        elif part == "0" and self._fused:
            meant = f"{layer}.{tensor}"
        return meant if meant in self._wanted else name


def is_quantizer(name: str) -> bool:
    """Whether a module on the way to this tensor is a quantizer, by its name."""
    return any(QUANTIZER.fullmatch(part) for part in name.split(".")[:-1])
