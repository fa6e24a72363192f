"""The site builds: every link, anchor and documented name is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is in the group `dev`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=200, env=env)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def test_every_verb_is_documented_with_what_it_takes_and_raises(site):
    text = (site / "reference" / "api" / "index.html").read_text()
    for name in ("qat.placement.prepare.prepare", "qat.verify.verify", "qat.observers.base.Observer"):
        assert f'id="{name}"' in text
    assert re.search(r"<h3[^>]*>\s*(<[^>]+>\s*)*qat\.prepare", text)  # by its public name
    assert "leaf_modules" in text
    assert "PlacementError" in text


def test_no_page_asks_another_server(site):
    asking = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!127\.0\.0\.1)')
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    assert [page for page in pages if asking.search(page.read_text())] == []
