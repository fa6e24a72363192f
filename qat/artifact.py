"""What an export leaves on disk: a file, where it runs, and how to read its integers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import fx, nn

from qat.target import Target


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """One exported model.

    Attributes:
        path: the file.
        target: where it runs; None for a float model.
        inputs: names of its inputs.
        outputs: names of its outputs.
        sites: names of the values that it stores as integers, in the order it computes them.
        metadata: what the file says about itself, text by key.
    """

    path: Path
    target: Target | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sites: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def kind(self) -> str:
        """File suffix: `.onnx`, `.xml`, `.pt2`, `.pte`."""
        return self.path.suffix

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of it: OpenVINO keeps weights in a second one, `.bin`."""
        weights = self.path.with_suffix(".bin")
        return (self.path, weights) if self.kind == ".xml" and weights.is_file() else (self.path,)

    @property
    def size_bytes(self) -> int:
        """Size of its files together."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def sha256(self) -> str:
        """Digest of its files, one after the other."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, names and values, and of its graph: tells it from any other model.

    Of an integer model these are the trained integers, and in the graph the scales between them.
    """
    digest = hashlib.sha256(model.code.encode() if isinstance(model, fx.GraphModule) else b"")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
