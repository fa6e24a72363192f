"""Names of tensors: from a checkpoint's to a model's, by stripping wrappers, renaming and reading other spellings.

    key = PREFIX + rest         PREFIX: a chain of wrapper names, e.g. `model._orig_mod.`
    new = rename(rest)          the longest `old` whose components open `rest` becomes `new`
    name = read(new)            as the model spells it (spelling.py); a float model has no use for quantizers

Of all chains that occur, the one after which most tensors fit the model is taken, the shorter one of two equals;
so a model whose own submodule is called `model` keeps it. Pure functions over names and shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile

from qat.errors import ConfigError
from qat.models.spelling import Spelling

COMPILED = "_orig_mod"  # torch.compile; alone among the wrappers it may also stand in the middle of a key
WRAPPERS = frozenset({"module", "model", "net", COMPILED})  # DataParallel, Lightning modules, Lightning modules
ENOUGH = 0.9  # share of the model's tensors that must fit after a suggested rename
SUGGESTED = 3  # renames in one suggestion
TRIED = 50  # candidates for each of them; bounds the time on large models

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Rename = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Translation:
    """Where each tensor of a checkpoint goes.

    Attributes:
        prefix: The chain that was stripped, with its last dot; may be empty.
        source: The checkpoint's key by the name it has after stripping and renaming.
        outside: Keys without the prefix that the model does not know: other parts of what was saved.
        quantizers: Keys of quantizers that the model does not have.
        clashes: Pairs of the checkpoint's keys that end up under one name.
        unused: Renames that match no key.
    """

    prefix: str
    source: Mapping[str, str]
    outside: tuple[str, ...]
    quantizers: tuple[str, ...]
    clashes: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]


def check_rename(rename: Mapping[str, str] | None) -> Rename:
    """The rename with every name a string (YAML reads the name `0` as a number); empty for None.

    Raises:
        ConfigError: Not a mapping, or a name that is neither text nor a whole number.
    """
    if rename is None:
        return {}
    if not isinstance(rename, Mapping) or not all(_is_name(name) for pair in rename.items() for name in pair):
        raise ConfigError(f"init_rename: need {{OLD: NEW}} with names ('' as NEW drops OLD), got {rename!r}")
    return {str(old): str(new) for old, new in rename.items()}


def translate(shapes: Shapes, wanted: Shapes, rename: Rename) -> Translation:
    """The translation of a checkpoint's keys that fits most of the model's tensors.

    Args:
        shapes: Shapes in the checkpoint, by its keys.
        wanted: Shapes in the model, by its keys.
        rename: Leading components to replace, after stripping.
    """

    def merit(found: Translation) -> tuple[int, int, int, int]:
        known = [new for new in found.source if new in wanted]
        fitting = sum(shapes[found.source[new]] == wanted[new] for new in known)
        return fitting, len(known), -len(found.unused), -len(found.prefix)

    return max((_translate(shapes, prefix, wanted, rename) for prefix in _prefixes(shapes)), key=merit)


def suggest(shapes: Shapes, wanted: Shapes, total: int) -> dict[str, str]:
    """Renames after which nearly the whole model fits; empty where a few renames do not get there.

    Args:
        shapes: Shapes in the checkpoint that found no place, by translated name.
        wanted: Shapes in the model that are still to be filled.
        total: Tensors in the whole model.
    """
    left, open_, found = dict(shapes), dict(wanted), dict[str, str]()
    while open_ and len(found) < SUGGESTED:
        votes = Counter(_pairs(left, open_))
        ranked = sorted(votes, key=lambda pair: (-votes[pair], len(pair[0] + pair[1]), pair))
        for old, new in ranked[:TRIED]:
            moved = {key: _moved(key, old, new) for key in left if _opens(old, key)}
            if all(open_.get(target) == left[key] for key, target in moved.items()):
                break
        else:
            break
        found[old] = new
        left = {key: shape for key, shape in left.items() if key not in moved}
        open_ = {key: shape for key, shape in open_.items() if key not in moved.values()}
    return found if found and total - len(open_) >= ENOUGH * total else {}


def nearest(name: str, names: Collection[str]) -> str:
    """The name with the longest common ending, in components, then the most similar one; empty without names."""
    parts = name.split(".")
    endings = {other: _common_ending(parts, other.split(".")) for other in names}
    longest = max(endings.values(), default=0)
    best = [other for other in names if endings[other] == longest]
    return next(iter(get_close_matches(name, best, n=1, cutoff=0.0)), "")


def heads(keys: Iterable[str]) -> list[str]:
    """Every leading part of the keys that a rename could name, without the last component (`weight`, `bias`)."""
    parts = [key.split(".") for key in keys]
    return sorted({".".join(part[:size]) for part in parts for size in range(1, len(part))})


def _is_name(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _prefixes(keys: Iterable[str]) -> list[str]:
    found = {""}
    for key in keys:
        prefix = ""
        for part in key.split(".")[:-1]:
            if part not in WRAPPERS:
                break
            prefix += f"{part}."
            found.add(prefix)
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _translate(keys: Collection[str], prefix: str, wanted: Collection[str], rename: Rename) -> Translation:
    compiled = any(COMPILED in key.split(".") for key in wanted)  # the model itself is: its keys keep the component
    source: dict[str, str] = {}
    clashes: list[tuple[str, str]] = []
    outside: list[str] = []
    quantizers: list[str] = []
    used: set[str] = set()
    renamed: dict[str, tuple[str, str | None]] = {}
    for key in sorted(keys, key=lambda key: not key.startswith(prefix)):  # those with the prefix come first
        rest = key.removeprefix(prefix)
        if not compiled:
            first, *others = rest.split(".")  # in front it belongs to the prefix
            rest = ".".join([first, *(part for part in others if part != COMPILED)])
        old = max((old for old in rename if _opens(old, rest)), key=len, default=None)
        renamed[key] = (rest if old is None else _moved(rest, old, rename[old])), old
    spelling = Spelling({name for name, _ in renamed.values()}, wanted)
    for key, (name, old) in renamed.items():
        new = spelling.read(name)
        if new is None:
            (quantizers if key.startswith(prefix) else outside).append(key)
            continue
        if not key.startswith(prefix) and (new not in wanted or new in source):
            outside.append(key)
            continue
        used.update(() if old is None else (old,))
        if new in source:
            clashes.append((source[new], key))
        source.setdefault(new, key)
    return Translation(
        prefix=prefix,
        source=source,
        outside=tuple(outside),
        quantizers=tuple(quantizers),
        clashes=tuple(clashes),
        unused=tuple(old for old in rename if old not in used),
    )


def _opens(old: str, key: str) -> bool:
    """Whether `old` is the whole key or its leading components; the empty name opens every key."""
    return not old or key == old or key.startswith(f"{old}.")


def _moved(key: str, old: str, new: str) -> str:
    rest = key.removeprefix(old).removeprefix(".")
    return ".".join(part for part in (new, rest) if part)


def _pairs(shapes: Shapes, wanted: Shapes) -> Iterator[tuple[str, str]]:
    """For each two tensors of one shape, what differs before their common ending: (`linear`, `fc`)."""
    by_shape: dict[Shape, list[Sequence[str]]] = {}
    for key, shape in wanted.items():
        by_shape.setdefault(shape, []).append(key.split("."))
    for key, shape in shapes.items():
        parts = key.split(".")
        for other in by_shape.get(shape, ()):
            if same := _common_ending(parts, other):
                yield ".".join(parts[: len(parts) - same]), ".".join(other[: len(other) - same])


def _common_ending(parts: Sequence[str], others: Sequence[str]) -> int:
    pairs = zip(reversed(parts), reversed(others), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
