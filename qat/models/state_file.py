"""A checkpoint file, read without running anything in it and checked to hold named, dense tensors only.

    safetensors     header length, JSON header, raw data
    torch.save      a zip (or, before torch 1.6, a bare pickle); always read with weights_only=True, onto the CPU

The state dict is the whole file, or sits under one of `WRAPPERS`.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from qat.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model")  # the second and third: many training scripts
SUFFIXES = frozenset({".th", ".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".tar"})
HARMLESS: list[Any] = [
    argparse.Namespace
]  # training scripts store their arguments beside the weights; only sets attributes
PICKLE = b"\x80"  # first byte of pickle protocols 2 and up
TORCH_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote first, before the zip form
LISTED = 8  # entries of a list that a message spells out
WAY_OUT = "Save the weights alone with torch.save(model.state_dict(), 'weights.pt')"


@dataclass(frozen=True, kw_only=True)
class StateFile:
    """The tensors of one checkpoint file, under the names they have in the file.

    Attributes:
        path: The file.
        kind: What it was, in words: `plain state dict`, `dict with state_dict`, `Lightning checkpoint`, `safetensors`.
        sha256: Of the file's bytes, in hexadecimal.
        tensors: Dense CPU tensors by name; at least one. The ranges of quantizers are among them.
        about: What the file says of quantized training, its entry `qat`; None where there is none.
    """

    path: Path
    kind: str
    sha256: str
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any] | None = None


def read_state(path: str | Path) -> StateFile:
    """Read a checkpoint file of any known form.

    Args:
        path: The file; `~` is the home folder.

    Raises:
        CheckpointError: No such file, a folder, unreadable, truncated, not a checkpoint, a pickle that asks for code
            to be run (which is not run), or something other than named dense tensors.
    """
    path = Path(path).expanduser()
    try:
        _check_is_file(path)
        # one open file for hash and content: a file replaced in between cannot be reported under the wrong hash
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            head = file.read(9)
            file.seek(0)
            # a safetensors header is JSON behind eight bytes of length; no torch.save has a brace there
            if path.suffix == ".safetensors" or head[8:] == b"{":
                whole = _read_safetensors(path, file)
                content, kind = whole, "safetensors"
            else:
                whole = _read_torch(path, file, head)
                content, kind = _unwrap(whole)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from error
    about = whole.get("qat") if isinstance(whole, Mapping) else None
    if isinstance(about, Mapping) and isinstance(about.get("ranges"), Mapping) and isinstance(content, Mapping):
        content = {**content, **about["ranges"]}  # a Trainer's checkpoint has them beside the weights
    return StateFile(
        path=path,
        kind=kind,
        sha256=sha256,
        tensors=_check_tensors(path, content),
        about=about if isinstance(about, Mapping) else None,
    )


def read_content(path: str | Path) -> Any:
    """All that a file of torch.save holds, e.g. optimizer states too, read as carefully; its tensors are not checked.

    Raises:
        CheckpointError: No such file, a folder, unreadable, truncated, not a checkpoint, or a pickle that asks for code
            to be run (which is not run).
    """
    path = Path(path).expanduser()
    try:
        _check_is_file(path)
        with path.open("rb") as file:
            head = file.read(9)
            file.seek(0)
            return _read_torch(path, file, head)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror or error}") from error


def listing(items: Iterable[str]) -> str:
    """The first items, comma separated, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a folder; name a file. In it: {_checkpoints_in(path) or 'none'}")
    if path.exists():
        return
    folder = path.parent
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {path} does not exist, nor does its folder {folder.absolute()}")
    near = get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Checkpoints there: {_checkpoints_in(folder) or 'none'}"
    raise CheckpointError(f"checkpoint {path.name} does not exist in {folder.absolute()}. {hint}")


def _checkpoints_in(folder: Path) -> str:
    return listing(sorted(entry.name for entry in folder.iterdir() if entry.suffix in SUFFIXES))


def _read_safetensors(path: Path, file: IO[bytes]) -> Any:
    try:
        return safetensors.torch.load(file.read())
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(_damaged(path, error)) from error


def _read_torch(path: Path, file: IO[bytes], head: bytes) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")  # what torch.load warns of either loads or is reported below
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        foreign = head.startswith(PICKLE) and not TORCH_PICKLE.startswith(head)
        if needs is None and not foreign:
            raise CheckpointError(_damaged(path, error)) from error
        what = f"it asks for {needs[1]} to be loaded" if needs else "it is a pickle that torch.save did not write"
        raise CheckpointError(
            f"checkpoint {path} is refused, and nothing in it was run: {what}, but a checkpoint may hold tensors and "
            f"plain values only. {WAY_OUT} where you trust the file and its code is installed"
        ) from error
    except Exception as error:  # damaged bytes surface as nearly any type: EOFError, KeyError, OSError, ...
        if "TorchScript" in str(error):
            raise CheckpointError(f"checkpoint {path} is a TorchScript archive, not a state dict. {WAY_OUT}") from error
        raise CheckpointError(_damaged(path, error)) from error


def _damaged(path: Path, error: Exception) -> str:
    why = (str(error).split(". ")[0].splitlines() or [""])[0]
    return (
        f"checkpoint {path} is truncated or not a checkpoint ({path.stat().st_size:,} bytes; "
        f"{type(error).__name__}{': ' + why if why else ''}). Copy it again, or name a file written by torch.save "
        "or safetensors"
    )


def _unwrap(content: Any) -> tuple[Any, str]:
    if isinstance(content, Mapping):
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                lightning = wrapper == "state_dict" and "pytorch-lightning_version" in content
                return content[wrapper], "Lightning checkpoint" if lightning else f"dict with {wrapper}"
    return content, "plain state dict"


def _check_tensors(path: Path, content: Any) -> Mapping[str, Tensor]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"checkpoint {path} holds a {type(content).__name__}, not a state dict. {WAY_OUT}")
    if not content:
        raise CheckpointError(f"checkpoint {path} holds an empty state dict. {WAY_OUT}")
    wrong = [f"{key!r} is {problem}" for key, value in content.items() if (problem := _problem(key, value))]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} holds no state dict, in which every name has a dense tensor: {listing(wrong)}. "
            f"{WAY_OUT}, or as a dict with `state_dict`"
        )
    return content


def _problem(key: object, value: object) -> str | None:
    if not isinstance(key, str):
        return f"of type {type(key).__name__}, not a name"
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    if value.is_quantized:
        return "a quantized tensor"
    if value.is_meta:
        return "a tensor without data (meta device)"
    if value.layout is not torch.strided:
        return f"a tensor of layout {value.layout}"
    return None
