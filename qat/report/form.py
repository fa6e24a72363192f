"""JSON as frozen dataclasses: what a file holds, checked against the types that its form says.

Keys that the form does not know are left out, and those that have a default may be missing: files of other versions.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

SHOWN = 40  # characters of a wrong value


def parse(form: Any, value: Any, *, null: float | None = None, at: str = "") -> Any:
    """`value`, as JSON has it, as the type `form`.

    Args:
        form: a dataclass, a tuple, a mapping, str, int, float or bool, or one of them or None.
        value: of a file.
        null: the number that null stands for; None where a number must be one.
        at: where in the file it is, for messages.

    Raises:
        ValueError: naming the key that lacks, or has another type.
    """
    origin, inner = get_origin(form), get_args(form)
    if origin in (Union, types.UnionType):
        kept = next(t for t in inner if t is not type(None))
        return None if value is None else parse(kept, value, null=null, at=at)
    if is_dataclass(form):
        return _filled(form, _typed(value, Mapping, "object", at), null, at)
    if origin is tuple:
        items = _typed(value, list, "list", at)
        return tuple(parse(inner[0], item, null=null, at=_inside(at, str(i))) for i, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        known = _typed(value, Mapping, "object", at)
        return {key: parse(inner[1], item, null=null, at=_inside(at, key)) for key, item in known.items()}
    if form is float:
        return null if value is None and null is not None else float(_typed(value, (int, float), "number", at))
    return _typed(value, form, form.__name__, at)


def _filled(form: Any, value: Mapping[str, Any], null: float | None, at: str) -> Any:
    needed = [f.name for f in fields(form) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [_inside(at, name) for name in needed if name not in value]:
        raise ValueError(f"it has no {', '.join(lacking)}")
    known = {name: hint for name, hint in get_type_hints(form).items() if name in value}
    return form(**{name: parse(hint, value[name], null=null, at=_inside(at, name)) for name, hint in known.items()})


def _typed(value: Any, form: Any, name: str, at: str) -> Any:
    if not isinstance(value, form) or (isinstance(value, bool) and form is not bool):
        shown = json.dumps(value)
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        raise ValueError(f"{f'{at}: ' if at else ''}{shown} is no {name}")
    return value


def _inside(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
