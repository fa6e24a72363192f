"""Every code block and command of README and docs: Python runs, commands compose, and run with `pytest -m slow`.

A remark in front of a block says how it runs:

<!-- run: KEY=VALUE ... -->     its commands run with these settings as well, small enough for a test
<!-- not run: REASON -->        it cannot run here
<!-- needs: PACKAGE -->         it runs where an extra is installed
<!-- slow -->                   the page's Python takes long: it runs with `pytest -m slow`
<!-- hidden                     Python that a reader does not see: it stands for what the reader has already
...
-->
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

import qat
from qat.component import Component
from qat.settings import HYDRA_KEYS

ROOT = Path(__file__).parents[2]
RECORDS = ("log.md", "zoo.md", "methods.md", "scaling.md", "CHANGELOG.md")  # dated results; their commands take hours
SHOWN = ("text", "yaml", "cpp", "xml", "html")  # what is shown and not run
PIECE = re.compile(
    r"<!-- *(?P<word>hidden|run:|not run:|needs:|slow)(?P<said>.*?)-->"
    r"|^```(?P<language>\w*)(?P<title>[^\n]*)\n(?P<code>.*?)^```",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block.

    Attributes:
        page: below the root of the repository.
        line: of its code, from 1.
        language: `python`, `bash`; `text` and others are shown, not run.
        code: without the fences.
        small: settings that make its commands small.
        reason: why it does not run here; empty where it does.
        file: that the code is, for others to import; empty for a script.
        shown: whether a reader sees it.
    """

    page: str
    line: int
    language: str
    code: str
    small: tuple[str, ...] = ()
    reason: str = ""
    file: str = ""
    shown: bool = True


def pages() -> list[Path]:
    """README and docs, without the records of what was measured."""
    found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in found if path.name not in RECORDS]


def name(path: Path) -> str:
    """As tests call a page."""
    return path.relative_to(ROOT).as_posix()


def is_slow(path: Path) -> bool:
    """Whether a page's Python takes long."""
    return "<!-- slow -->" in path.read_text()


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, in order; hidden ones are Python."""
    text, found, remark = path.read_text(), [], ("", "")
    for piece in PIECE.finditer(text):
        start = piece.start("said" if piece["word"] else "code")
        line = text.count("\n", 0, start) + 1
        if piece["word"] == "hidden":
            found.append(Block(page=name(path), line=line, language="python", code=piece["said"], shown=False))
        elif piece["word"]:
            remark = (piece["word"], " ".join(piece["said"].split()))
        else:
            word, said = remark
            found.append(
                Block(
                    page=name(path), line=line, language=piece["language"], code=piece["code"],
                    small=tuple(said.split()) if word == "run:" else (),
                    reason=_why_not(word, said),
                    file=(re.findall(r'title="(.*?)"', piece["title"]) or [""])[0],
                )
            )  # fmt: skip
            remark = ("", "")
    return found


def _why_not(word: str, said: str) -> str:
    if word == "needs:":
        return "" if find_spec(said) else f"{said} is not installed"
    return said if word == "not run:" else ""


def commands(block: Block) -> list[str]:
    """The commands of a bash block: without comments, continued lines joined."""
    text = block.code.replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#\s.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
BASH = [block for block in BLOCKS if block.language == "bash"]
TRAIN = re.compile(r"^(?:uv run (?:--extra \w+ )*)?(?:python )?train\.py\b")
QUICK = ["float.epochs=1", "qat.calibration_batches=1", "latency.repeats=3", "verify.agreement=0", "verify.top1=100",
         "trainer.enable_progress_bar=false", "trainer.limit_train_batches=2"]  # fmt: skip
UNTRIED = ("pip install", "uv ", "git clone", "pre-commit", "mkdocs", "pytest", "eval ")  # no commands of ours


def where(block: Block) -> str:
    return f"{block.page}:{block.line}"


def python_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python" and not block.reason]


QUICKLY = [page for page in PAGES if python_of(page) and not is_slow(page)]
SLOWLY = [page for page in PAGES if python_of(page) and is_slow(page)]


@pytest.mark.parametrize("page", [*QUICKLY, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOWLY)], ids=name)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page, one after the other, in one namespace and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    namespace = {"__name__": "__main__"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a reader's own; the package's are errors in its own tests
        for block in python_of(page):
            if block.file:
                (tmp_path / block.file).write_text(block.code)
            code = "\n" * (block.line - 1) + block.code  # a traceback shows the line of the page
            exec(compile(code, str(page), "exec"), namespace)


def overrides(command: str) -> list[str]:
    words = shlex.split(TRAIN.sub("", command.replace("--cfg job", "")))
    return [word for word in words if not word.startswith("-")]


@pytest.mark.parametrize("block", [b for b in BASH if any(map(TRAIN.match, commands(b)))], ids=where)
def test_commands_compose(block):
    """Every key that a command sets is one that something takes; also of commands that need data of the reader."""
    for command in filter(TRAIN.match, commands(block)):
        given = [one for o in overrides(command) for one in [_single(o)] if not o.startswith(("hydra", "hparams"))]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", overrides=["run_dir=/nowhere", *given])
        for node in _components(cfg):
            if not str(node._target_).startswith("my_package"):
                taken = inspect.signature(Component(path=node._target_).resolve()).parameters
                open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
                wrong = [k for k in node if not (open_ended or k in taken or k in HYDRA_KEYS)]
                assert not wrong, f"{command}: {node._target_} takes no {wrong}"
        if isinstance(cfg.quant.override, str):  # a file of the reader's
            cfg.quant.override = None
        qat.QuantRecipe.parse(OmegaConf.to_container(cfg.quant, resolve=True))
        qat.Target.parse(OmegaConf.to_container(cfg.target, resolve=True))


def _single(override: str) -> str:
    """The first value of a sweep's; the first of `target=[A, B]`, which the run reads itself."""
    key, _, value = override.partition("=")
    if key == "target" and value.startswith("["):
        return f"target={value[1:-1].split(',')[0]}"
    sweep = re.fullmatch(r"[\w.-]+(,[\w.-]+)+", value)
    return f"{key}={value.partition(',')[0]}" if sweep else override


def _components(node) -> list[DictConfig]:
    if not OmegaConf.is_dict(node):
        return []
    own = [node] if "_target_" in node and not OmegaConf.is_missing(node, "_target_") else []
    return own + [c for key in node if not OmegaConf.is_missing(node, key) for c in _components(node._get_node(key))]


def test_every_block_has_a_language_that_is_run_or_only_shown():
    strange = [where(block) for block in BLOCKS if block.language not in (*SHOWN, "python", "bash")]
    assert not strange, "name the language: python, bash, or text for what is only shown"


def test_every_command_is_one_that_is_tried():
    """Or its block says why it is not."""
    known = ("python -m qat.report", "python ", *UNTRIED)
    left = [
        f"{where(block)} {command}"
        for block in BASH
        for command in commands(block)
        if not block.reason and not TRAIN.match(command) and not command.startswith(known)
    ]
    assert not left


RUNNABLE = [page for page in PAGES if any(b.language == "bash" and not b.reason for b in blocks(page))]


@pytest.mark.slow
@pytest.mark.runtime
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_commands_run(page, tmp_path):
    """The commands of a page, one after the other, in one folder, on a small model for a few steps."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for part in ("examples", "benchmarks"):
        (tmp_path / part).symlink_to(ROOT / part)
    for block in blocks(page):
        if block.reason or (block.language == "python" and block.shown and not block.file):
            continue
        if block.file:
            (tmp_path / block.file).write_text(block.code)
        elif block.language == "python":
            subprocess.run([sys.executable, "-c", block.code], cwd=tmp_path, timeout=100, env=alone, check=True)
        for command in commands(block) if block.language == "bash" else ():
            if command.startswith(UNTRIED) and not TRAIN.match(command):
                continue
            words = _small(command, block) if TRAIN.match(command) else shlex.split(command)[1:]
            process = subprocess.run(
                [sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, timeout=280, env=alone
            )
            assert process.returncode == 0, f"{where(block)} {command}\n{process.stdout}\n{process.stderr}"


def _small(command: str, block: Block) -> list[str]:
    words = shlex.split(TRAIN.sub("", command))
    flags = [word for word in words if word.startswith("-")]
    if "--help" in flags or "--cfg" in flags:
        return [str(ROOT / "train.py"), *words]
    given = [word for word in words if not word.startswith("-")]
    model = [] if any(word.startswith(("model=", "experiment=")) for word in given) else ["model=resnet20"]
    # what a block says stands behind its command, so that it wins; so does the test
    return [str(ROOT / "train.py"), *flags, *model, *given, *QUICK, *block.small]
