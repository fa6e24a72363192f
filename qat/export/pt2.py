"""`.pt2`: the exported program itself, for torch. Reading it needs operators that `qat.runtime` loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from qat.artifact import Artifact
from qat.export.program import artifact_of
from qat.files import replacing


def write_pt2(program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Artifact:
    """Save the program; `about` is what `convert` knows of the model."""
    with replacing(path) as temporary:
        torch.export.save(program, temporary, extra_files={"qat.json": json.dumps(about.get("metadata", {}))})
    return artifact_of(program, path, about)
