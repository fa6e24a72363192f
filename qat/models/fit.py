"""How a checkpoint's tensors lie over a model's, and the sentences that say so where they do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from qat.models.keys import Shapes, Translation, nearest, suggest
from qat.models.state_file import listing

OPTIONAL = frozenset({"num_batches_tracked"})  # last components that a checkpoint may lack (torch before 0.4.1)
EXAMPLES = 3  # pairs of keys shown when nothing fits
LOOSE = "init_strict=false (strict=False in Python)"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Shapes of a checkpoint beside those of the model, by the model's names.

    Attributes:
        path: The checkpoint, for messages.
        model: The model's class, for messages.
        given: Shapes in the checkpoint, by translated name.
        wanted: Shapes in the model.
        outside: Shapes of the checkpoint beside the stripped prefix, by the checkpoint's own names.
    """

    path: Path
    model: str
    given: Shapes
    wanted: Shapes
    outside: Shapes

    @classmethod
    def of(
        cls, path: Path, model: str, shapes: Shapes, wanted: Shapes, found: Translation, head: Collection[str] = ()
    ) -> Fit:
        """The fit under one translation; `shapes` goes by the checkpoint's own names.

        Names of the model in `head` are to stay as initialised: on both sides as if they were not there.
        """
        return cls(
            path=path,
            model=model,
            given={new: shapes[key] for new, key in found.source.items() if new not in head},
            wanted={key: shape for key, shape in wanted.items() if key not in head},
            outside={key: shapes[key] for key in found.outside},
        )

    @property
    def fitting(self) -> tuple[str, ...]:
        """Names with the same shape on both sides, batch counters included."""
        return tuple(key for key, shape in self.given.items() if self.wanted.get(key) == shape)

    @property
    def matched(self) -> int:
        """Number of fitting tensors, batch counters aside."""
        return len(_required(self.fitting))

    @property
    def total(self) -> int:
        """Number of tensors in the model, batch counters aside."""
        return len(_required(self.wanted))

    @property
    def missing(self) -> tuple[str, ...]:
        """The model's names that the checkpoint lacks."""
        return _required(key for key in self.wanted if key not in self.given)

    @property
    def unexpected(self) -> tuple[str, ...]:
        """The checkpoint's names that the model lacks."""
        return _required(key for key in self.given if key not in self.wanted)

    @property
    def mismatched(self) -> tuple[str, ...]:
        """Names on both sides with different shapes."""
        return tuple(key for key, shape in self.given.items() if self.wanted.get(key, shape) != shape)

    @property
    def is_complete(self) -> bool:
        """Whether every tensor has its place; those outside the stripped prefix do not count."""
        return not (self.missing or self.unexpected or self.mismatched)

    def nothing_fits(self) -> str:
        """The sentence for a checkpoint of another model."""
        pairs = []
        for key in (self.unexpected or tuple(self.given))[:EXAMPLES]:
            near = nearest(key, self.wanted)
            pairs.append(
                f"{_named(key, self.given)} (nearest in the model: {_named(near, self.wanted) if near else '-'})"
            )
        return (
            f"checkpoint {self.path} fits no tensor of {self.model}; {len(self.given)} tensors in the file, "
            f"{self.total} in the model\n"
            f"  in the file: {', '.join(pairs)}, ...\n"
            f"  in the model: {', '.join(_named(key, self.wanted) for key in list(self.wanted)[:EXAMPLES])}, ...\n"
            f"Build the model that it was saved from{self._rename_hint()}"
        )

    def some_fits(self) -> str:
        """The sentence and the lists for a checkpoint that fits in parts."""
        groups = {
            "missing": [_named(key, self.wanted) for key in self.missing],
            "unexpected": [_named(key, self.given) for key in self.unexpected],
            "of another shape": [self._both(key) for key in self.mismatched],
            "in the file beside the model": [_named(key, self.outside) for key in self.outside],
        }
        lines = [f"checkpoint {self.path} fits {self.matched} of {self.total} tensors of {self.model}"]
        lines += [f"  {what}: {listing(names)}" for what, names in groups.items() if names]
        lines += [f"Use {LOOSE} to load what fits{self._rename_hint()}"]
        return "\n".join(lines)

    def other_classes(self) -> str | None:
        """The sentence for a checkpoint that differs in nothing but the number of classes; else nothing."""
        pairs = [(self.given[key], self.wanted[key]) for key in self.mismatched]
        counts = {(theirs[:1], ours[:1]) for theirs, ours in pairs}  # rows of weight and bias, of auxiliary heads too
        same_inputs = all(theirs[1:] == ours[1:] for theirs, ours in pairs)
        weights = [key for key in self.mismatched if len(self.wanted[key]) > 1]
        if self.missing or self.unexpected or len(counts) != 1 or not same_inputs or not weights:
            return None
        (theirs,), (ours,) = counts.pop()
        heads = ", ".join(key.rpartition(".")[0] or key for key in weights)
        return (
            f"checkpoint {self.path}: the head {heads} has {theirs} classes in the checkpoint and {ours} in the model "
            f"({listing(self._both(key) for key in self.mismatched)}); everything else fits. Build the model with "
            f"num_classes={theirs}, or use init_reset_head=true, which trains a new head, or {LOOSE}, which leaves the "
            "new head as initialised"
        )

    def _both(self, key: str) -> str:
        return f"{_named(key, self.given)} in the file, {list(self.wanted[key])} in the model"

    def _rename_hint(self) -> str:
        spare = {key: self.given[key] for key in self.unexpected} | dict(self.outside)
        if not spare or not self.missing:
            return ""
        renames = suggest(spare, {key: self.wanted[key] for key in self.missing}, self.total)
        pairs = ", ".join(f"{old}: {new or repr('')}" for old, new in renames.items())
        return f", or try init_rename={{{pairs}}}" if pairs else ", or rename with init_rename={OLD: NEW}"


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Shapes by name."""
    return {key: tuple(value.shape) for key, value in tensors.items()}


def _required(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if key.rpartition(".")[2] not in OPTIONAL)


def _named(key: str, shapes: Shapes) -> str:
    return f"{key!r} {list(shapes[key])}"
