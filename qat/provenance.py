"""What a checkpoint of quantized training says of itself: the recipe and target under which its ranges mean something.

    checkpoint["qat"] = {format, recipe: name, target: name, settings: {"recipe.weight.bits": 8, ...}, ranges: {...}}

Plain values and tensors only, so that a checkpoint loads without running code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from qat.recipe import QuantRecipe
from qat.target import Target

FORMAT = 3  # since 3 a Trainer's checkpoint has its ranges here, not in its state_dict
KEY = "qat"  # of the entry in a checkpoint
FLOAT = "float_sha256"  # in it: fingerprints of the float networks that training began with, by name
RANGES = "ranges"  # of the tensors in it, by name; a file of one model alone has them in its state_dict


def provenance(recipe: QuantRecipe, target: Target) -> dict[str, Any]:
    """The entry for a checkpoint."""
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "target": target.name,
        "settings": _settings(recipe, target),
    }


def differences(saved: Mapping[str, Any], recipe: QuantRecipe, target: Target) -> list[str]:
    """In what a checkpoint's entry and these differ, in words; empty where they agree.

    Format 1 knew names alone, so only these are compared then. An entry that cannot be read differs in just that.
    """
    if wrong := unreadable(saved):
        return [wrong]
    ours = _settings(recipe, target)
    names = {"recipe.name": saved.get("recipe"), "target.name": saved.get("target")}
    theirs: Mapping[str, Any] = saved.get("settings") or {k: v for k, v in names.items() if v is not None}
    keys = [*theirs, *(key for key in ours if key not in theirs and "settings" in saved)]
    return [
        f"{key} is {_word(theirs, key)} in the checkpoint and {_word(ours, key)} here"
        for key in keys
        if theirs.get(key) != ours.get(key)
    ]


def unreadable(saved: object) -> str:
    """Why a checkpoint's entry means nothing here, in words; empty where it can be compared."""
    if not isinstance(saved, Mapping):
        return f"its entry {KEY!r} is of type {type(saved).__name__}, not a mapping"
    form = saved.get("format")
    if type(form) is not int or form < 1:
        return f"its entry {KEY!r} has the format {form!r}, which no version of qat writes"
    if form > FORMAT:
        return f"it has a newer format, {form}; this qat reads formats up to {FORMAT}: install a newer qat"
    names = [key for key in ("recipe", "target") if not isinstance(saved.get(key), str)]
    if names:
        return f"its entry {KEY!r} names no {' and no '.join(names)}"
    if "settings" in saved and not isinstance(saved["settings"], Mapping):
        return f"its entry {KEY!r} has settings of type {type(saved['settings']).__name__}, not a mapping"
    try:
        json.dumps(dict(saved.get("settings", {})))
    except (TypeError, ValueError, RecursionError) as error:
        return f"its entry {KEY!r} has settings that are no plain values ({error})"
    ranges = saved.get(RANGES, {})
    if not isinstance(ranges, Mapping) or not all(isinstance(v, Tensor) for v in ranges.values()):
        return f"its entry {KEY!r} has {RANGES} that are no tensors by name"
    return ""


def _settings(recipe: QuantRecipe, target: Target) -> dict[str, Any]:
    nested = {"recipe": asdict(recipe), "target": asdict(target)}
    return dict(_flat(json.loads(json.dumps(nested, default=str))))  # enums become their text, tuples lists


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _word(settings: Mapping[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "not there"
