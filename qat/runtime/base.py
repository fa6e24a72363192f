"""What every runtime is: a loaded artefact that maps a batch to its first output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from qat.artifact import Artifact
from qat.runtime.coverage import Coverage


class Runtime(ABC):
    """A loaded artefact.

    Attributes:
        artifact: what was loaded.
        name: runtime, version and how the graph was treated, as the parity table shows it.
        metadata: what the file says about itself, text by key; empty for a file that this package did not write.
        inputs: names of its inputs in the file; empty where it has none.
        outputs: names of its outputs in the file; empty where it has none.
    """

    name: str
    metadata: Mapping[str, str]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.metadata = {}

    @abstractmethod
    def __call__(self, *x: Tensor) -> Tensor:
        """First output for inputs `[N, ...]`, in the artefact's order, on the CPU.

        Raises:
            ArtifactError: the runtime failed; its own words are in the message.
        """

    def coverage(self) -> Coverage | None:
        """What the runtime executes on integers, read back from it; None where it does not tell."""
        return None

    def intermediates(self, *x: Tensor) -> dict[str, Tensor]:
        """The integers of every site for inputs `[N, ...]`; empty where the runtime does not show them."""
        return {}
