"""Contrast of the page's colors, light, dark and printed (WCAG 2.1: 4.5 for text, 3 for what is drawn)."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

STYLE = (files("qat.report") / "style.css").read_text()
TEXT, DRAWN = 4.5, 3.0
BLOCKS = {"light": r":root\{(.*?)\}", "dark": r":root\[data-theme=dark\]\{(.*?)\}", "print": r"print\{.*?\{(.*?)\}"}


def luminance(color: str) -> float:
    """Of `#rgb` or `#rrggbb`, 0 to 1."""
    digits = color[1:] if len(color) == 7 else "".join(c + c for c in color[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_and_white():
    assert contrast("#000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("block", BLOCKS)
def test_everything_is_seen(block):
    found = re.search(BLOCKS[block], STYLE, flags=re.DOTALL)
    assert found
    colors = dict(re.findall(r"--([a-z]+\d?):(#[0-9a-f]+)", found[1]))
    for ground in ("page", "tile"):
        for name in ("ink", "soft", "warn"):
            assert contrast(colors[name], colors[ground]) >= TEXT, (name, ground)
        for name in ("mark", "c1", "c2", "c3", "c4", "c5", "c6"):
            assert contrast(colors[name], colors[ground]) >= DRAWN, (name, ground)
