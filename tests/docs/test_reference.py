"""The pages that the code decides are those that the code would write now."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

import qat
from qat.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.mark.parametrize("name", ["config.md", "errors.md"])
def test_a_generated_page_is_current(generate, name):
    current = (DOCS / "reference" / name).read_text()
    assert generate.PAGES[name]() == current, f"{name} is out of date; write it again: python docs/generate.py"


def test_a_key_that_nothing_explains_is_refused(generate):
    with pytest.raises(ConfigError, match=r"latency.x says nowhere what it means; write a comment beside it in f.yaml"):
        generate.rows([("latency.x", 1, "")], "f.yaml")


def test_comments_belong_to_the_key_that_they_stand_beside(generate):
    text = "a: # of a\n  b: 1 # of b\n  c: [x, y]\nd: null # of d\ndefaults: [x]\n"
    assert generate.keys(text, "s.") == [("s.a.b", 1, "of b"), ("s.a.c", ["x", "y"], ""), ("s.d", None, "of d")]


def test_templates_of_messages(generate):
    source = "raise ConfigError(f'need x >= 0, got {cfg.x!r} and {len(a)}')\nraise DataError(message)"
    assert list(generate._messages(ast.parse(source))) == [("ConfigError", "need x >= 0, got {cfg.x} and {...}")]


def test_every_public_name_is_in_the_api():
    page = (DOCS / "reference" / "api.md").read_text()
    named = {line.split("qat.")[1] for line in page.splitlines() if line.strip().startswith("heading: qat.")}
    assert {name for name in qat.__all__ if name not in named} == set()
