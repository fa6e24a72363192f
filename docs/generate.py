"""Writes the reference pages that the code decides: `python docs/generate.py`. A test fails when they are not current.

docs/reference/config.md    every key of conf/: type and default from the code, meaning from the comment beside it
docs/reference/errors.md    every message that the package raises, as a template, by class
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qat import errors  # noqa: E402
from qat.component import Component  # noqa: E402
from qat.errors import ConfigError, QatError  # noqa: E402
from qat.parity import Tolerance  # noqa: E402
from qat.recipe import QuantRecipe, TensorRecipe  # noqa: E402
from qat.target import Target  # noqa: E402
from qat.training import Classifier, QuantizationAwareTraining  # noqa: E402

CONF, REFERENCE = ROOT / "conf", ROOT / "docs" / "reference"
# what takes the values of a section that names no `_target_`, by the beginning of its keys
TAKERS: dict[str, tuple[Any, ...]] = {
    "quant.weight": (TensorRecipe,),
    "quant.activation": (TensorRecipe,),
    "quant": (QuantRecipe,),
    "target": (Target,),
    "verify": (Tolerance,),
    "float": (Classifier,),
    "qat": (QuantizationAwareTraining, Classifier),
}
VALUES = (TensorRecipe, Target)
LISTED = ("experiment",)  # groups whose files set keys of the others
HIDDEN = ("_partial_", "_convert_", "_recursive_")
SECTIONS = ("model", "data", "quant", "target", "float", "qat", "trainer", "logger")
NULLS = {  # what null stands for
    "num_classes": "int", "init_rename": "mapping", "override": "mapping", "init_from": "path", "ckpt_path": "path",
    "adaround": "mapping", "ema": "mapping", "oscillation": "mapping",
}  # fmt: skip
Key = tuple[str, Any, str]  # path, default, comment


def keys(text: str, prefix: str = "") -> list[Key]:
    """Every leaf of a config file with the comment beside it; a comment above a run of keys stands for none of them."""
    beside, stack = {}, list[tuple[int, str]]()
    for line in text.splitlines():
        found = re.match(r"( *)([\w]+):(?: .*?)?(?:\s#\s(.*))?$", line)
        if found is None:
            continue
        indent = len(found[1])
        stack = [*(s for s in stack if s[0] < indent), (indent, found[2])]
        beside[".".join(name for _, name in stack)] = (found[3] or "").strip()
    leaves = _leaves(yaml.safe_load(text) or {})
    return [(f"{prefix}{path}", value, beside.get(path, "")) for path, value in leaves if path.split(".")[0] != "hydra"]


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if key == "defaults" or key in HIDDEN:
            continue
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def rows(found: list[Key], file: str) -> list[str]:
    """The table of a file's keys.

    Raises:
        ConfigError: a key that neither its file nor the code that takes it explains.
    """
    classes = {path.rpartition(".")[0]: value for path, value, _ in found if path.endswith("_target_")}
    table = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for path, default, comment in found:
        section, _, name = path.rpartition(".")
        takers = _takers(section, classes.get(section))
        documented = _documented(takers, name)
        meaning = comment or documented or _elsewhere(takers, name)
        if comment and documented and takers[0] in VALUES:  # the comment says why it has this value
            meaning = f"{documented}. Here: {comment}"
        if name == "_target_":
            meaning = comment or "the class or function that is built, by its public name"
        if not meaning:
            raise ConfigError(f"{path} says nowhere what it means; write a comment beside it in {file}")
        kind = "class" if name == "_target_" else _type(takers, name, default)
        shown = "required" if default == "???" else f"`{_flow(default)}`"
        table.append(f"| `{path}` | {_cell(kind)} | {_cell(shown)} | {_cell(meaning)} |")
    return table


def _takers(section: str, target: str | None) -> tuple[Any, ...]:
    if target and target != "???":
        return (Component(path=target).resolve(),)
    return next((found for start, found in TAKERS.items() if section == start), ())


def _type(takers: tuple[Any, ...], name: str, default: Any) -> str:
    for taker in takers:
        parameter = inspect.signature(taker).parameters.get(name)
        if parameter is not None and parameter.annotation is not parameter.empty:
            text = inspect.formatannotation(parameter.annotation).strip("'").replace("NoneType", "None")
            text = re.sub(r"\b[a-z_]\w*\.", "", text)
            if re.fullmatch(r"[\w |\[\],]{1,40}", text) and text not in ("Any", "Union", "Optional"):
                return text
    if default is None:
        return f"{NULLS.get(name, 'str')} | None"
    words = {bool: "bool", int: "int", float: "float", str: "str", list: "list", tuple: "list", dict: "mapping"}
    return words[type(default)]


def _documented(takers: tuple[Any, ...], name: str) -> str:
    """What a class of this package says of an argument."""
    for taker in takers:
        if not taker.__module__.startswith("qat"):
            continue
        for cls in inspect.getmro(taker) if inspect.isclass(taker) else (taker,):
            said = re.search(rf"^( +){name}: (.*(?:\n\1 +\S.*)*)", inspect.getdoc(cls) or "", re.MULTILINE)
            if said:
                return re.sub(r"\s+", " ", said[2]).rstrip(".")
    return ""


def _elsewhere(takers: tuple[Any, ...], name: str) -> str:
    """Where a class of another package is documented."""
    for taker in takers:
        if not taker.__module__.startswith("qat") and name in inspect.signature(taker).parameters:
            return f"of `{taker.__module__.split('.')[0]}`'s `{taker.__name__}`"
    return ""


def _flow(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _first_line(file: Path) -> str:
    lines = [line for line in file.read_text().splitlines() if not line.startswith("# @")]
    return lines[0].removeprefix("# ")


def config_page() -> str:
    """`config.md`."""
    out = [
        "# Config keys",
        "",
        "Every key of `conf/`, written by `docs/generate.py` from the files and the code that reads them. Any of them",
        "goes on the command line as `key=value`; `python train.py --cfg job` shows what a command would run with. A",
        "key that nothing takes is refused, with the nearest one.",
        "",
        "## The run",
        "",
        *rows(keys((CONF / "config.yaml").read_text()), "conf/config.yaml"),
    ]
    groups = [*SECTIONS, *sorted(p.name for p in CONF.iterdir() if p.is_dir() and p.name not in SECTIONS)]
    for group in groups:
        files = sorted((CONF / group).rglob("*.yaml"))
        if group == "hydra" or not files:
            continue
        out += ["", f"## {group}", ""]
        if len(files) > 1 or group in LISTED:
            out += ["| option | what it is |", "|---|---|"]
            out += [f"| `{group}={file.stem}` | {_cell(_first_line(file))} |" for file in files]
        if group in LISTED:
            continue
        for file in _told(group, files):
            place = "" if "# @package _global_" in file.read_text() else f"{group}."
            found = keys(file.read_text(), place)
            if group == "target":  # a file leaves out what has its default
                given = {path for path, _, _ in found}
                more = [(f"target.{f.name}", f.default, "") for f in fields(Target) if f"target.{f.name}" not in given]
                found += more
            if not found:
                continue
            out += ["", f"### {group}={file.stem}", ""] if len(files) > 1 else [_first_line(file), ""]
            out += rows(found, str(file.relative_to(ROOT)))
    return "\n".join(out) + "\n"


def _told(group: str, files: list[Path]) -> list[Path]:
    """The files whose keys are shown: of recipes and targets one, because all have the same."""
    chosen = {"quant": ["w8a8"], "target": ["onnxruntime"]}.get(group)
    return [file for file in files if chosen is None or file.stem in chosen]


def errors_page() -> str:
    """`errors.md`."""
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, QatError) and c is not QatError]
    said: dict[str, set[str]] = {c.__name__: set() for c in classes}
    for path in sorted((ROOT / "qat").rglob("*.py")):
        for name, message in _messages(ast.parse(path.read_text())):
            if name in said:
                said[name].add(message)
    out = [
        "# Errors",
        "",
        "What a user can mend ends in one of these, all below `qat.errors.QatError`: the value, the rule and the way",
        "out. `train.py` prints it as one line and exits with 1; a job of a sweep leaves it in `error.txt`. Written by",
        "`docs/generate.py` from the code: `{...}` stands for what the message fills in.",
    ]
    for cls in classes:
        out += ["", f"## {cls.__name__}", "", f"{inspect.getdoc(cls)}", ""]
        out += [f"- {_text(message)}" for message in sorted(said[cls.__name__])]
    return "\n".join(out) + "\n"


def _text(message: str) -> str:
    """Markdown that shows a message as it is."""
    return re.sub(r"([*_\[\]<>|`])", r"\\\1", " ".join(message.split()))


def _messages(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Class and template of every error that a module makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
            message = _template(node.args[0])
            if message:
                yield node.func.id, message


def _template(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + _short(node.value) + "}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _template(node.left), _template(node.right)
        return f"{left}{right or '{...}'}" if left else ""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "unknown_name":
        return f"unknown {_template(node.args[0])} {{{_short(node.args[1])}}}. Did you mean {{...}}? Known: {{...}}"
    return ""


def _short(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if re.fullmatch(r"[\w.]{1,40}", text) else "..."


PAGES = {"config.md": config_page, "errors.md": errors_page}


def main() -> None:
    """Write them all."""
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())


if __name__ == "__main__":
    main()
