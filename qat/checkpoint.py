"""Checkpoints of prepared models: weights and ranges, with the recipe and the target that they belong to.

    prepared -> file -> prepared alike      load_prepared: everything, and nothing where it was prepared differently
    prepared -> file -> float model         qat.models.load_float: the weights; quantizers are left out and counted

A Lightning checkpoint of quantization-aware training is such a file too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qat.errors import CheckpointError
from qat.files import replacing
from qat.models.checkpoint import LoadReport, load_state
from qat.models.fit import Fit, shapes_of
from qat.models.keys import translate
from qat.models.spelling import is_quantizer
from qat.models.state_file import StateFile, listing, read_state
from qat.placement import PreparedModel
from qat.provenance import KEY, differences, provenance


def save_prepared(model: PreparedModel, path: str | Path) -> Path:
    """Write weights, ranges, recipe and target, whole or not at all.

    Raises:
        ExportError: The folder cannot be written.
    """
    content = {"state_dict": model.state_dict(), KEY: provenance(model.recipe, model.target)}
    with replacing(path) as temporary:
        torch.save(content, temporary)
    return Path(path)


def load_prepared(model: PreparedModel, path: str | Path) -> LoadReport:
    """Load weights and ranges into a model that was prepared alike, in place; on any error it is as it was.

    Takes what `save_prepared` writes, a Lightning checkpoint, or a plain state dict, which does not know its recipe.

    Raises:
        CheckpointError: The file is missing, broken or refused, its model is not prepared, or was prepared differently:
            says which settings and which tensors differ.
        NumericsError: A weight is NaN or Inf.
    """
    state = read_state(path)
    if not any(is_quantizer(key) for key in state.tensors):
        raise CheckpointError(
            f"checkpoint {state.path} holds a float model, without ranges; load it into the float model "
            "(qat.models.load_float), prepare and calibrate that"
        )
    settings = [] if state.about is None else differences(state.about, model.recipe, model.target)
    tensors = _other_tensors(model, state)
    if settings or tensors:
        lines = [f"checkpoint {state.path} was prepared differently from this {model.plan.model}"]
        lines += [f"  settings: {listing(settings)}"] if settings else []
        lines += [f"  {line}" for line in tensors] or ["  the tensors have the same names and shapes"]
        lines += [
            "Prepare the float model with the recipe, target and exclude of the checkpoint, or load its weights alone "
            "into the float model (qat.models.load_float) and prepare that"
        ]
        raise CheckpointError("\n".join(lines))
    return load_state(model, state)


def _other_tensors(model: PreparedModel, state: StateFile) -> list[str]:
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    shapes, wanted = shapes_of(state.tensors), shapes_of(own)
    found = translate(shapes, wanted, {})
    fit = Fit.of(state.path, model.plan.model, shapes, wanted, found)
    groups = {
        "only in the model": fit.missing,
        "only in the checkpoint": (*fit.unexpected, *(key.removeprefix(found.prefix) for key in found.quantizers)),
        "of another shape": fit.mismatched,
    }
    return [f"{what}: {listing(map(repr, names))}" for what, names in groups.items() if names]
