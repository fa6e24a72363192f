"""What each way to quantize is worth: the recorded experiments, each to its top-1 in onnxruntime; docs/methods.md.

    uv run --extra hf benchmarks/methods.py --runs methods --markdown docs/methods.md \
        --data ../shared/data/cifar10 --checkpoint ../shared/checkpoints/cifar10_resnet20.th
    uv run benchmarks/methods.py --runs methods --read --markdown docs/methods.md        runs nothing

RUNS/NAME/SEED is a run of conf/experiment/NAME.yaml, and one that has finished is not run again. What is read is every
finished run below RUNS, whatever its folder is called: Hydra has left there which experiment it was. One that changed a
setting besides is no row, but what was tried: it stands behind a row that falls short. Rows and notes of the file that
no run replaces stay, so that notes can be written by hand, and experiments be run one by one.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markdown import replace_block, table

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = ("cifar10_resnet20_", "digits_")  # of experiments; a block of the file each
TO_REACH: dict[str, float | str] = {  # top-1 of the artefact in percent, or the experiment to be no worse than
    "cifar10_resnet20_ptq": 91.6,
    "cifar10_resnet20_w4a8": 91.6,
    "cifar10_resnet20_w4a8_adaround": 91.0,
    "cifar10_resnet20_w4a4_lsq": 91.7,
    "cifar10_resnet20_w3a3_lsq": 91.2,
    "cifar10_resnet20_w2a2_lsq": 90.0,
    "cifar10_resnet20_mixed5": "cifar10_resnet20_w5a5",
}
ASIDE = ("experiment=", "data.path=", "init_from=", "seed=", "quiet=", "hydra.", "run_dir=", "cache_dir=", "ckpt_path=",
         "report=", "trainer.enable_progress_bar=", "latency.")  # fmt: skip
TRIED = "where it falls short: what was tried"
HEADERS = {
    "cifar10_resnet20_": (
        "recipe", "PTQ", "QAT", "artefact", "to reach", "seeds", "kB", "seconds", "command", TRIED,
    ),
    "digits_": ("method", "float", "artefact", "kB (of float)", "ms (float)", "seeds", "seconds", "command", TRIED),
}  # fmt: skip


@dataclass(kw_only=True)
class Found:
    """What was run of an experiment.

    Attributes:
        runs: results of each seed, as it is recorded.
        tried: results by the settings that were changed.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    tried: dict[str, dict[str, Any]] = field(default_factory=dict)


def experiments(family: str) -> list[str]:
    """Names of the recorded experiments of a family."""
    return sorted(path.stem for path in (ROOT / "conf" / "experiment").glob(f"{family}*.yaml"))


def finished(runs: Path) -> dict[str, Found]:
    """Every finished run below a folder, by its experiment."""
    found: dict[str, Found] = {}
    for path in sorted(runs.rglob("results.json")):
        said = path.parent / ".hydra" / "overrides.yaml"
        overrides = yaml.safe_load(said.read_text()) if said.is_file() else []
        name = next((o.partition("=")[2] for o in overrides if o.startswith("experiment=")), None)
        if name is None:
            continue
        results, of = json.loads(path.read_text()), found.setdefault(name, Found())
        changed = " ".join(o for o in overrides if not o.startswith(ASIDE))
        if changed:
            of.tried[changed] = results
        else:
            of.runs.append(results)
    return found


def run(name: str, seed: int, folder: Path, given: Sequence[str]) -> None:
    """Run an experiment as anyone would, unless it has finished; its gate may fail, and the table will say so."""
    if not (folder / "results.json").is_file():
        words = [f"experiment={name}", f"seed={seed}", f"hydra.run.dir={folder}", *given]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=False)


def number(values: Sequence[float], digits: int = 2) -> str:
    """`91.80`, or of several seeds `91.80 ± 0.05`: mean and standard deviation."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def top1(runs: Sequence[Mapping[str, Any]], stage: str = "int8") -> float:
    """Mean over seeds, in percent."""
    return statistics.mean(run["top1"][stage] for run in runs)


def short_of(name: str, found: Mapping[str, Found]) -> tuple[str, bool]:
    """What is to be reached, in words, and whether it was missed."""
    wanted = TO_REACH.get(name)
    if wanted is None:
        return "", False
    if isinstance(wanted, float):
        return f"{wanted:.1f}", round(top1(found[name].runs), 2) < wanted
    other = found.get(wanted, Found()).runs
    if not other:
        return f"`{wanted}`", False
    bytes_of = [statistics.mean(run["size_bytes"]["int8"] for run in runs) for runs in (found[name].runs, other)]
    return f"{top1(other):.2f}, `{wanted}`", top1(found[name].runs) < top1(other) or bytes_of[0] > bytes_of[1]


def row(name: str, found: Mapping[str, Found], notes: str) -> list[str]:
    """The cells of one experiment; `notes` is what the last one was before."""
    runs = found[name].runs
    reach, missed = short_of(name, found)
    artefact = number([run["top1"]["int8"] for run in runs])
    artefact = f"**{artefact}**" if missed else artefact
    artefact += "" if all(run["passed"] for run in runs) else " (outside the gate)"
    kilobytes = {kind: statistics.mean(run["size_bytes"][kind] for run in runs) / 1000 for kind in ("int8", "float")}
    ms = {kind: statistics.mean(run["latency_ms"][kind] for run in runs) for kind in ("int8", "float")}
    tried = notes_of(notes)
    tried |= {f"`{changed}`": f"{other['top1']['int8']:.2f}" for changed, other in found[name].tried.items()}
    last = [
        str(len(runs)),
        f"{statistics.mean(run['seconds']['total'] for run in runs):.0f}",
        f"`experiment={name}`",
        "; ".join(f"{key} {value}".strip() for key, value in tried.items()) if missed else "",
    ]
    if name.startswith("digits_"):
        size = f"{kilobytes['int8']:.0f} ({kilobytes['int8'] / kilobytes['float']:.2f})"
        floats = number([run["top1"]["float"] for run in runs])
        return [short(name), floats, artefact, size, f"{ms['int8']:.3f} ({ms['float']:.3f})", *last]
    ptq = number([run["top1"]["ptq"] for run in runs])
    trained = [run["top1"]["qat"] for run in runs if run["task"] == "qat"]
    size = f"{kilobytes['int8']:.0f}"
    return [short(name), ptq, number(trained) if trained else "", artefact, reach, last[0], size, *last[1:]]


def short(name: str) -> str:
    """The name of an experiment within its family."""
    return name.removeprefix(next(family for family in FAMILIES if name.startswith(family)))


def notes_of(cell: str) -> dict[str, str]:
    """The items of a cell of notes, those about settings by their settings."""
    found = {}
    for item in filter(None, cell.split("; ")):
        setting = re.match(r"`[^`]*`", item)
        found[setting[0] if setting else item] = item[setting.end() :].strip() if setting else ""
    return found


def rows_of(path: Path, name: str) -> dict[str, list[str]]:
    """The rows that a block of the file has, by the short name of their experiment."""
    lines = [line for line in block_of(path, name).splitlines() if line.startswith("| ")][1:]  # without the header
    rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]
    return {cells[0]: cells for cells in rows if cells[0] != "---"}


def about(found: Mapping[str, Found]) -> Iterator[str]:
    """Machine and versions of each run."""
    for one in (one for of in found.values() for one in of.runs):
        versions = ", ".join(f"{k} {one['versions'][k]}" for k in ("torch", "onnxruntime"))
        yield f"{one['cpu']['name']} ({', '.join(one['cpu']['isa'])}), {one['cpu']['threads']} thread; {versions}."


def write(path: Path, found: Mapping[str, Found]) -> None:
    """Rewrite the blocks of the file."""
    for family in FAMILIES:
        block = f"methods: {family.rstrip('_')}"
        old, rows = rows_of(path, block), []
        for name in experiments(family):
            if name in found and found[name].runs:
                rows.append(row(name, found, old[short(name)][-1] if short(name) in old else ""))
            elif short(name) in old:
                rows.append(old[short(name)])
        ours = {name: of for name, of in found.items() if name.startswith(family)}
        kept = [line for line in block_of(path, block).splitlines() if line and not line.startswith("|")]
        machines = "\n".join(dict.fromkeys([*kept, *about(ours)]))
        if rows:
            replace_block(path, block, f"{table(HEADERS[family], rows)}\n\n{machines}")


def block_of(path: Path, name: str) -> str:
    """What stands in a block of the file."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end {name} -->", path.read_text(), re.DOTALL)
    return found[1] if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--read", action="store_true", help="run nothing")
    parser.add_argument("--experiments", nargs="+", help="of conf/experiment; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--data", type=Path, help="CIFAR-10 as parquet")
    parser.add_argument("--checkpoint", type=Path, help="the published ResNet-20")
    parser.add_argument("--markdown", type=Path, default=ROOT / "docs" / "methods.md", help="the file to rewrite")
    args = parser.parse_args()
    if not args.read:
        for name in args.experiments or [name for family in FAMILIES for name in experiments(family)]:
            given = ["quiet=true"]
            if name.startswith("cifar10_"):
                if args.data is None or args.checkpoint is None:
                    parser.error(f"{name} needs --data and --checkpoint; or give --experiments, or --read")
                given += [f"data.path={args.data}", f"init_from={args.checkpoint}"]
            for seed in args.seeds:
                run(name, seed, args.runs / name / str(seed), given)
    write(args.markdown, finished(args.runs))


if __name__ == "__main__":
    main()
