"""Rules of the user about what stays in float: glob patterns over the names that the plan prints."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from qat.errors import PlacementError


def matching(pattern: str, names: Iterable[str]) -> set[str]:
    """Names that a pattern means: the name itself, or anything below it (`layer1` means `layer1.0.conv1` too)."""
    return {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}


def excluded(patterns: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Each name that a pattern excludes, with that pattern.

    Args:
        patterns: glob patterns.
        names: everything that could be excluded, in the order of the graph.

    Raises:
        PlacementError: listing all patterns that match nothing, with the nearest names.
    """
    found: dict[str, str] = {}
    useless = []
    for pattern in patterns:
        hits = matching(pattern, names)
        if not hits:
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
            useless.append(f"  {pattern!r}" + (f" (nearest: {', '.join(near)})" if near else ""))
        for name in hits:
            found.setdefault(name, pattern)
    if useless:
        raise PlacementError(
            "exclude patterns that match no operator of the model:\n" + "\n".join(useless) + "\n"
            "  Patterns are globs over the names in plan.txt, such as 'layer1.0.*'; correct or remove them"
        )
    return found
