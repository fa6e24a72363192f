"""Float baselines that were trained once and are kept: a cache keyed by everything that produced them.

    <folder>/<name>-<key>.safetensors      the weights
    <folder>/<name>-<key>.json             what the key stands for, to be read by people

Runs that want the same baseline wait for the first one to train it; a file appears whole or not at all. Of several
processes of one run, the first one holds the lock and the files, and all of them train.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qat.files import replacing, write_text
from qat.training.processes import agreed, first

log = logging.getLogger(__name__)


def cached_baseline(
    model: nn.Module, produced_by: Mapping[str, Any], folder: str | Path, name: str, train: Callable[[], None]
) -> bool:
    """Load the weights that `produced_by` stands for into `model`, or train them and keep them.

    Args:
        model: gets the weights, in place.
        produced_by: plain values (as JSON writes them) that decide the weights: model, data, optimizer, seed, versions.
        folder: the cache.
        name: beginning of the file name, for people.
        train: trains `model`; called when nothing is kept yet.

    Returns:
        Whether the weights came from the cache.
    """
    text = json.dumps(produced_by, sort_keys=True, indent=2)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    weights = Path(folder) / f"{name}-{key}.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(weights.with_suffix(".lock")) if first() else nullcontext():
        if first():
            for path in weights.parent.glob(f".{weights.stem}-*"):  # of a process that was killed while it wrote
                path.unlink()
        if kept := agreed(_read(weights, model) if first() and weights.is_file() else None):
            model.load_state_dict(kept)
            log.info("float baseline from the cache: %s", weights)
            return True
        train()
        model.load_state_dict(agreed(model.state_dict()))
        if not first():
            return False
        with replacing(weights) as temporary:
            # clones: safetensors refuses one tensor under two names
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}, temporary)
        write_text(weights.with_suffix(".json"), text + "\n")
    log.info("float baseline kept at %s", weights)
    return False


def _read(path: Path, model: nn.Module) -> dict[str, Tensor] | None:
    """The weights in a file of the cache; None, with a warning, where it is damaged: they are trained again then."""
    try:
        found = load_file(path)
        shapes = {key: (value.shape, value.dtype) for key, value in found.items()}
        if shapes != {key: (value.shape, value.dtype) for key, value in model.state_dict().items()}:
            raise ValueError("its tensors are not those of the model")
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("float baseline %s is damaged (%s): it is trained again", path, error)
        return None
    return found
