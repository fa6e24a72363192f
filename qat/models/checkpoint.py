"""Loads the weights of a float checkpoint into a model: everything is checked first, then all is copied at once.

    file -> named tensors (state_file.py) -> the model's names (keys.py) -> shapes (fit.py) -> dtypes, finite -> copy

Tensors of another float type are cast to the model's. `num_batches_tracked` counts batches, not weights: it is
loaded where present, and neither counted nor missed where absent.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from qat.errors import CheckpointError, NumericsError
from qat.models.fit import Fit, shapes_of
from qat.models.keys import Translation, check_rename, heads, nearest, translate
from qat.models.spelling import is_quantizer
from qat.models.state_file import StateFile, listing, read_state
from qat.models.unmasked import unmasked


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was loaded from where; `str()` is one line for the log.

    Attributes:
        path: The file.
        kind: What it was, in words, e.g. `dict with state_dict`.
        sha256: Of the file, in hexadecimal.
        prefix: Wrapper names that were stripped, e.g. `model._orig_mod.`; may be empty.
        renamed: The renames that were applied.
        matched: Tensors loaded, batch counters aside.
        total: Tensors of the model, batch counters aside.
        missing: The model's tensors that the checkpoint lacks.
        unexpected: The checkpoint's tensors that the model lacks.
        mismatched: Tensors of another shape, left as initialised.
        outside: The checkpoint's keys beside the stripped prefix: other parts of what was saved, not looked at.
        head: The model's tensors that were left as initialised, as asked.
        quantizers: The checkpoint's keys that belong to quantizers, which the model does not have.
        cast: Float types that were cast to the model's, e.g. `float16`.
        masks: Masks of pruned weights that were multiplied into them, as the model has none.
    """

    path: Path
    kind: str
    sha256: str
    prefix: str
    renamed: Mapping[str, str]
    matched: int
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    outside: tuple[str, ...]
    head: tuple[str, ...]
    quantizers: tuple[str, ...]
    cast: tuple[str, ...]
    masks: int = 0

    def __str__(self) -> str:
        """E.g. `loaded 97 of 97 tensors from x.th (dict with state_dict; prefix 'module.' stripped)`."""
        notes = [self.kind]
        notes += [f"prefix {self.prefix!r} stripped"] if self.prefix else []
        notes += [f"renamed {old} -> {new or repr('')}" for old, new in self.renamed.items()]
        notes += [f"new head {', '.join(self.head)}"] if self.head else []
        notes += [f"cast from {', '.join(self.cast)}"] if self.cast else []
        notes += [f"{self.masks} masks of pruned weights applied"] if self.masks else []
        counts = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.mismatched,
            "outside the model": self.outside,
            "of quantizers left out": self.quantizers,
        }
        notes += [f"{len(names)} {what}" for what, names in counts.items() if names]
        return f"loaded {self.matched} of {self.total} tensors from {self.path.name} ({'; '.join(notes)})"


def load_float(
    model: nn.Module,
    path: str | Path,
    *,
    rename: Mapping[str, str] | None = None,
    strict: bool = True,
    head: Collection[str] = (),
) -> LoadReport:
    """Load a float checkpoint into `model`, in place; on any error the model is as it was.

    Takes a plain state dict, a dict with `state_dict`, a Lightning checkpoint, or safetensors. `module.`, `model.`,
    `net.` and `_orig_mod.` are stripped from the front, in any order, where that makes more tensors fit. Quantized
    training, of this package or of torch.ao on `torchvision.models.quantization`, leaves float weights as well: they
    are loaded, what belongs to its quantizers is left out and counted.

    Args:
        model: Receives the weights, on whatever device it is.
        path: The checkpoint file.
        rename: Leading components of the checkpoint's keys to replace, after stripping: `{"linear": "fc"}`.
            An empty new name drops them.
        strict: Whether every tensor must find its place. If not, tensors without a counterpart of the same shape are
            left as initialised and reported; a checkpoint that fits nothing is refused all the same.
        head: Names of the model's tensors that stay as initialised whatever the checkpoint holds (`head_of`).

    Raises:
        CheckpointError: The file is missing, broken or refused, or it does not fit.
        NumericsError: A tensor to be loaded holds NaN or Inf.
        ConfigError: `rename` does not map names to names.
    """
    return load_state(model, read_state(path), rename=rename, strict=strict, head=head)


def load_state(
    model: nn.Module,
    state: StateFile,
    *,
    rename: Mapping[str, str] | None = None,
    strict: bool = True,
    head: Collection[str] = (),
) -> LoadReport:
    """As `load_float`, from tensors that were read already."""
    renames = check_rename(rename)
    # the state dict's tensors share memory with the model's
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    state, masks = unmasked(state, own)
    shapes, wanted = shapes_of(state.tensors), shapes_of(own)
    found = translate(shapes, wanted, renames)
    _check_rename_applies(state, found)
    fit = Fit.of(state.path, type(model).__name__, shapes, wanted, found, head)
    if strict and (sentence := fit.other_classes()):
        raise CheckpointError(sentence)
    if not fit.matched:
        raise CheckpointError(fit.nothing_fits())
    if strict and not fit.is_complete:
        raise CheckpointError(fit.some_fits())
    pairs = {key: (state.tensors[found.source[key]], own[key].dtype) for key in fit.fitting}
    tensors = _converted(state.path, pairs)

    with torch.no_grad():
        for key, value in tensors.items():
            own[key].copy_(value)
    return LoadReport(
        path=state.path,
        kind=state.kind,
        sha256=state.sha256,
        prefix=found.prefix,
        renamed=renames,
        matched=fit.matched,
        total=fit.total,
        missing=fit.missing,
        unexpected=fit.unexpected,
        mismatched=fit.mismatched,
        outside=found.outside,
        head=tuple(key for key in own if key in head),
        quantizers=found.quantizers,
        cast=tuple(sorted({_dtype(value.dtype) for value, dtype in pairs.values() if value.dtype != dtype})),
        masks=masks,
    )


def _check_rename_applies(state: StateFile, found: Translation) -> None:
    if found.unused:
        names = heads(key.removeprefix(found.prefix) for key in state.tensors)
        each = [f"{old!r} (nearest: {nearest(old, names)!r})" for old in found.unused]
        where = f", after {found.prefix!r} is stripped" if found.prefix else ""
        raise CheckpointError(
            f"init_rename: no key of checkpoint {state.path} begins with {listing(each)}; "
            f"need whole leading components of its keys{where}"
        )
    if found.clashes:
        pairs = [f"{first!r} and {second!r}" for first, second in found.clashes]
        raise CheckpointError(
            f"checkpoint {state.path}: two tensors for one place: {listing(pairs)}; "
            "need init_rename to give every key a name of its own"
        )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _converted(path: Path, pairs: Mapping[str, tuple[Tensor, torch.dtype]]) -> dict[str, Tensor]:
    """Each tensor in the model's dtype; every entry is checked before the first is used."""
    wrong = [
        f"{key!r} is {_dtype(value.dtype)}, need {'a float type' if dtype.is_floating_point else _dtype(dtype)}"
        for key, (value, dtype) in pairs.items()
        if (value.is_floating_point(), value.is_complex()) != (dtype.is_floating_point, dtype.is_complex)
    ]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} holds another kind of number than the model: {listing(wrong)}. Save the float model's "
            "weights, before any conversion to integers"
        )
    tensors = {key: value.to(dtype) for key, (value, dtype) in pairs.items()}
    bad = [
        f"{key!r} ({count} of {value.numel()} values)"
        for key, value in tensors.items()
        # after the cast: a large float64 overflows; a quantizer that has seen nothing yet has infinite ends
        if not is_quantizer(key) and (count := int((~torch.isfinite(value)).sum()))
    ]
    if bad:
        raise NumericsError(
            f"checkpoint {path} holds NaN or Inf: {listing(bad)}; weights must be finite. The training that wrote it "
            "diverged: use an earlier checkpoint"
        )
    return tensors
