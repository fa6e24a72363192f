"""The house's floors: which room of `qat/` may import which. DESIGN.md, section 3; ARCHITECTURE.md has the reasons."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import qat

PACKAGE = Path(qat.__file__).parent

GRIDS = {"errors", "spec"}
WORDS = GRIDS | {"budget", "component", "presets", "recipe", "target"}
NUMERICS = GRIDS | {"functional", "observers", "quantizers", "layers"}
VERBS = {"placement", "switches", "calibrate", "compile", "convert"}

MAY_IMPORT: dict[str, set[str]] = {
    # what a grid, a recipe and a target are: values, no torch modules
    "errors": set(),
    "spec": {"errors"},
    "budget": {"errors", "spec"},
    "component": {"errors"},
    "presets": {"errors"},
    "target": {"errors", "presets"},
    "recipe": {"errors", "budget", "component", "presets", "spec", "target"},
    "provenance": {"recipe", "target"},
    # what is on disk
    "files": {"errors"},
    "inputs": {"errors"},
    "artifact": {"errors", "target"},
    # numerics, each floor on the one below
    "functional": GRIDS,
    "observers": GRIDS | {"functional"},
    "quantizers": GRIDS | {"functional", "observers"},
    "layers": GRIDS | {"functional", "observers", "quantizers"},
    # verbs
    "placement": WORDS | NUMERICS | {"inputs"},
    "switches": {"errors", "layers", "placement", "quantizers"},
    "calibrate": {"errors", "functional", "inputs", "quantizers", "placement", "switches"},
    "compile": {"errors", "functional", "layers", "placement"},
    "convert": WORDS | NUMERICS | {"placement"},
    "dynamic": WORDS | NUMERICS | {"placement"},
    "weight_only": WORDS | NUMERICS | {"placement"},
    "reestimate": {"errors", "placement", "switches", "calibrate"},
    "bias_correction": {"errors", "layers", "placement", "switches", "calibrate"},
    "adaround": NUMERICS | {"placement", "switches", "calibrate", "bias_correction"},
    "equalize": {"errors", "functional", "layers", "placement"},
    "keep_zeros": {"errors", "layers"},
    "export": WORDS | NUMERICS | {"placement", "convert", "artifact", "files", "inputs"},
    "checkpoint": {"errors", "files", "models", "placement", "provenance"},
    "parity": {"errors", "runtime"},
    "ladder": {"errors", "inputs", "calibrate", "parity"},
    "departure": {"artifact", "convert", "inputs", "parity", "placement", "runtime", "switches", "walk"},
    "verify": WORDS | VERBS | {"inputs", "layers", "artifact", "runtime", "machine", "parity", "ladder", "departure"},
    "walk": {"inputs", "placement"},
    "sensitivity": WORDS | NUMERICS | {"placement", "switches", "calibrate", "inputs", "verify", "walk"},
    "mixed": WORDS | {"functional", "placement", "sensitivity"},
    "audit": {"errors", "artifact", "convert", "export", "runtime"},
    "training": WORDS
    | NUMERICS
    | VERBS
    | {
        "inputs",
        "parity",
        "reestimate",
        "artifact",
        "audit",
        "files",
        "export",
        "machine",
        "models",
        "runtime",
        "verify",
        "provenance",
    },
    # rooms that hang off the bottom and meet the rest in the pipeline
    "machine": set(),
    "runtime": GRIDS | {"artifact", "target"},
    "data": GRIDS | {"component"},
    "models": GRIDS | {"component", "files"},
    "report": GRIDS | {"files"},
    "recorder": WORDS | NUMERICS | VERBS | {"inputs", "report", "runtime"},
    "settings": {"errors"},
}
HELPERS = {"adaround", "bias_correction", "equalize", "keep_zeros", "reestimate"}  # of post-training quantization
MAY_IMPORT["__init__"] = (
    WORDS
    | VERBS
    | HELPERS
    | {"dynamic", "weight_only", "sensitivity", "mixed", "artifact", "export", "parity", "verify", "training"}
)  # what `import qat` offers
MAY_IMPORT["pipeline"] = set(MAY_IMPORT)

# packages that only some rooms may know; ours start fast, and work where an extra is not installed
ONLY_IN: dict[str, set[str]] = {
    "omegaconf": {"pipeline", "settings", "report"},  # nothing else sees a DictConfig
    "hydra": {"pipeline", "settings", "report"},  # report: its table of a sweep is a callback of Hydra's
    "onnxruntime": {"runtime"},
    "openvino": {"runtime", "export"},
    "executorch": {"runtime", "export"},
    "onnx": {"export", "runtime", "audit"},
    "onnxscript": {"export"},
    "datasets": {"data"},
    "sklearn": {"data"},
    "scipy": {"functional"},
    "torchvision": {"data", "models"},
    "timm": {"models"},
    "safetensors": {"models", "training"},  # training: the cache of float baselines
    "pytorch_lightning": {"data", "training", "recorder", "pipeline"},  # recorder: curves of training
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[ast.stmt, str]]:
    found: list[tuple[ast.stmt, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "qat":
            found += [(node, f"qat.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node, "." * node.level + (node.module or "")))
    return found


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}"


def test_the_rooms_are_floors():
    assert list(TopologicalSorter(MAY_IMPORT).static_order())[-1] == "pipeline"  # raises CycleError on a cycle


def test_every_room_is_on_the_plan():
    assert {room(path) for path in FILES} <= set(MAY_IMPORT)


@pytest.mark.parametrize("name", sorted(MAY_IMPORT))
def test_imports_point_down(name):
    wrong = []
    for path in (p for p in FILES if room(p) == name):
        for node, module in imports(ast.parse(path.read_text())):
            if module.partition(".")[0] != "qat":
                continue
            other = module.split(".")[1] if "." in module else "__init__"
            if other not in MAY_IMPORT[name] | {name}:
                wrong.append(f"{where(path, node)} imports {module}; {name} may import {sorted(MAY_IMPORT[name])}")
    assert not wrong, "\n".join(wrong)


def _guarded(tree: ast.Module) -> list[ast.stmt]:
    """What stands in a `try` at the top: the import of an extra, which may be missing; or is for type checkers."""
    return [n for outer in tree.body if isinstance(outer, ast.Try | ast.If) for n in outer.body]


def test_imports_are_absolute_and_at_the_top():
    wrong = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        top = {*tree.body, *_guarded(tree)}
        wrong += [where(path, n) for n, module in imports(tree) if n not in top or module.startswith(".")]
    assert not wrong, "\n".join(wrong)


def test_packages_stay_where_they_belong():
    wrong = []
    for path in FILES:
        for node, module in imports(ast.parse(path.read_text())):
            package = module.partition(".")[0]
            if room(path) not in ONLY_IN.get(package, {room(path)}):
                wrong.append(f"{where(path, node)} imports {package}, which belongs to {sorted(ONLY_IN[package])}")
    assert not wrong, "\n".join(wrong)


def test_nobody_prints():
    calls = (
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    )
    assert not [where(path, node) for path, node in calls]


def test_every_file_says_what_it_is_for():
    silent = [path.name for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_who_names_the_decomposed_operators_registers_them(path):
    """`torch.ops.quantized_decomposed` is empty until that module is imported, and who came first is chance."""
    tree = ast.parse(path.read_text())
    named = any(isinstance(node, ast.Attribute) and node.attr == "quantized_decomposed" for node in ast.walk(tree))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not named or "torch.ao.quantization.fx._decomposed" in imported
