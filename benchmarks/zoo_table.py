"""The table of docs/zoo.md: from rows of figures, one a model and image size, to Markdown and a verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markdown import table

from qat import machine

Row = dict[str, Any]

SAME = 1e-5  # of the largest output: torch's closed attention and the opened one add up in another order
MEAN = 2.0  # steps: what sums in another order leave of a deep net; above it, the floor of that net has to explain it
FLOOR = 2.0  # times: two draws of the same noise differ by less
STAGES = ("torch", "off_ort", "ort")

# why a model may fail; no other may. None of torchvision's, and a tenth of timm's names at most
EXPLAINED = {
    "timm/xcit_nano_12_p16_224": (
        "2.79 steps in the mean with onnxruntime's optimizations on, 0.6 with them off, against 2.0 allowed. No "
        "kernel is wrong: it is a sum of ties. Without the integer kernel of Add 8 % of the difference are left, "
        "without that of the last sum of the first class attention block 42 %. That sum is x + x for all tokens "
        "but the class token, so its scale is exactly twice its inputs', and half of the class token's sums lie "
        "exactly between two integers. onnxruntime's kernel rounds them to even, float arithmetic (fake-quant, and "
        "the file with optimizations off) as float32's own rounding has it; and the logits are read from that "
        "token alone. Both summands are on grids, so noise behind the layers leaves these ties as they are"
    ),
}

HEAD = (
    "model", "px", "prepare, s", "CPU s", "quantizers", "int8 MACs, %", "off: eval", "train", "again", "step",
    "convert + export, s", "CPU s", "agreement, % (off)", "max steps (off)", "agreement, %", "max steps", "mean steps",
    "noise floor", "file ratio", "memory, GB", "threads", "day",
)  # fmt: skip

ABOUT = """
Recipe w8a8 for onnxruntime; weights and images are random (see the script). *CPU s*: processor time of all threads,
which other work on the machine leaves alone; wall seconds are upper bounds, as other work shared the two cores.
*off*: prepared with fake-quant off against float, largest difference relative to the largest output, in evaluation,
in training, and after switching back and forth; 1e-5 passes, and above it what is below {floor:g} noise floors of that
difference. *step*: one of SGD; gradients and updated weights are finite in every
trainable tensor that the float model's loss reaches (on 2026-11-24: gradients alone). *(off)*: onnxruntime without
graph optimizations, then its default. Steps are those of the output's integers, against fake-quant. *noise floor*:
mean steps by which fake-quant differs from itself when the sums of its layers (before 2026-11-26: its
input) move by float32's rounding; a mean below {mean:g}
steps passes, and above it one below {floor:g} floors. With random weights classes tie, so agreement over {examples}
is no accuracy: it decides nothing here. *file ratio*: int8 file to float parameters. *memory*: the most that
the whole process had, about one of it the packages.
""".strip()


def key(row: Row) -> tuple[str, int | None]:
    """What a row is about; a model that was stopped has no size."""
    return row["model"], row.get("size")


def read(path: Path | None) -> dict[tuple[str, int | None], Row]:
    """Rows of a record, the latest of each model and size."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {key(row): row for row in map(json.loads, lines)}


def write(path: Path, rows: Sequence[Row]) -> None:
    """A record, one row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def passed(row: Row) -> bool:
    """Same as float when off, finite gradients, and an artefact that computes what fake-quant does."""
    if "error" in row:
        return False
    own = row.get("off_floor", {})  # what float32's rounding alone does, where SAME is passed
    same = all(v <= max(SAME, FLOOR * own.get(mode, 0.0)) for mode, v in row["off"].items())
    bound = max(MEAN, FLOOR * (row.get("floor") or 0.0))
    return same and not row["bad_gradients"] and all(row[k].get("mean", 0.0) <= bound for k in STAGES if k in row)


def accepted(rows: Sequence[Row]) -> bool:
    """Whether no model fails but those that are explained."""
    return all(verdict(row) != "FAIL" for row in rows)


def verdict(row: Row) -> str:
    """`ok`, `known` for an explained failure, `FAIL`."""
    return "ok" if passed(row) else "known" if row["model"] in EXPLAINED else "FAIL"


def cells(row: Row) -> list[str]:
    """A line of the table."""
    if "error" in row:
        return [row["model"], row["error"].splitlines()[0], *[""] * (len(HEAD) - 2)]
    off, ort = row["off_ort"], row["ort"]
    return [
        row["model"], str(row["size"]), f"{row['prepare_s']:.1f}", _number(row, ".1f", "prepare_cpu_s"),
        str(row["quantizers"]), f"{100 * row['int8_macs']:.1f}",
        *(f"{row['off'][k]:.0e}" if row["off"][k] else "0" for k in ("eval", "train", "again")),
        "finite" if not row["bad_gradients"] else f"{len(row['bad_gradients'])} not",
        f"{row['convert_s'] + row['export_s']:.1f}", _number(row, ".1f", "convert_cpu_s", "export_cpu_s"),
        f"{off['agreement']:.1f}", f"{off['max']:.1f}",
        f"{ort['agreement']:.1f}", f"{ort['max']:.1f}", f"{ort['mean']:.2f}", _number(row, ".2f", "floor"),
        f"{row['file_ratio']:.3f}", f"{max(row['peak_gb'].values()):.1f}" if "peak_gb" in row else "",
        str(row.get("threads", "")), row.get("day", ""),
    ]  # fmt: skip


def _number(row: Row, form: str, *keys: str) -> str:
    """A sum of figures, or nothing where one was not taken."""
    found = [row.get(k) for k in keys]
    return "" if None in found else f"{sum(found):{form}}"  # type: ignore[arg-type]


def markdown(rows: Sequence[Row], *, examples: int, fewer: Mapping[str, int], missing: Sequence[str]) -> str:
    """The page: a verdict, what the columns mean, the table, and why models fail."""
    images = f"{examples} images{''.join(f', {count} of `{name}`' for name, count in fewer.items())}{',' * bool(fewer)}"
    versions = machine.versions()
    machines = dict.fromkeys(f"{row['day']}: {row['cpu']}" for row in rows if "day" in row and "cpu" in row)
    failing = {row["model"] for row in rows if not passed(row)}
    models = {row["model"]: row["model"] not in failing for row in rows}
    why = [f"`{model}`: {EXPLAINED.get(model, 'not explained')}." for model, fine in models.items() if not fine]
    lines = [
        "# The zoo",
        f"{sum(models.values())} of {len(models)} models pass. `benchmarks/zoo.py`, last with "
        f"{', '.join(f'{k} {v}' for k, v in versions.items())}. Machines: {'; '.join(machines)}.",
        ABOUT.format(examples=images, mean=MEAN, floor=FLOOR),
        *([f"Not run yet: {', '.join(f'`{name}`' for name in missing)}."] if missing else []),
        table(HEAD, [cells(row) for row in rows]),
        *(["## What fails", *why] if why else []),
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"
