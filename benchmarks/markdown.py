"""Tables of the documentation that a benchmark writes: what stands between `<!-- NAME -->` and `<!-- end NAME -->`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def replace_block(path: Path, name: str, text: str) -> None:
    """Put `text` into the block `name` of a file.

    Raises:
        ValueError: the file has no such block.
    """
    content = path.read_text()
    block = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)", re.DOTALL)
    if not block.search(content):
        raise ValueError(f"{path} has no block {name!r}; add <!-- {name} --> and <!-- end {name} -->")
    path.write_text(block.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", content))


def show(text: str, path: Path | None, name: str) -> None:
    """Put `text` into the block `name` of a file, or on the terminal where there is none."""
    if path is None:
        sys.stdout.write(text + "\n")
    else:
        replace_block(path, name, text)
