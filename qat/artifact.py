"""What an export leaves on disk: a file, where it runs, and how to read its integers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

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
    """

    path: Path
    target: Target | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sites: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """File suffix: `.onnx` or `.pt2`."""
        return self.path.suffix

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def sha256(self) -> str:
        """Digest of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()
