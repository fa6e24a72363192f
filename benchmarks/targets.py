"""Each target in its own runtime: parity with the fake-quant model, integers read back; the table of docs/runtimes.md.

    uv run --extra hf benchmarks/targets.py --model resnet20 --data ../shared/data/cifar10 --json targets.jsonl \
        --checkpoint ../shared/checkpoints/cifar10_resnet20.th
    uv run train.py qat.epochs=0          # trains MobileNetV2 on digits and keeps it in .cache/float
    uv run benchmarks/targets.py --model mobilenet_v2 --checkpoint .cache/float/mobilenetv2-digits-KEY.safetensors \
        --json targets.jsonl --markdown docs/runtimes.md

Calibration alone, no training: the question is whether the runtime does what the fake-quant model does. Lines are
appended to `--json`, so that targets can be run one by one; the table shows the last line of each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from markdown import show, table
from rich.console import Console

import qat
from qat import machine
from qat.audit import audit
from qat.data import Digits, ImageData
from qat.data.hf import HuggingFaceData
from qat.models import build, load_float
from qat.presets import preset_names
from qat.runtime import load

BLOCK = "targets"


def measure(args: argparse.Namespace, target: qat.Target, data: ImageData) -> dict[str, Any]:
    """One row: parity, coverage and audit of one target."""
    start = time.perf_counter()
    model = build(args.model, data.num_classes)
    load_float(model, args.checkpoint, rename={"linear": "fc"} if args.model == "resnet20" else {})
    model.eval()
    calibration = list(islice(data.calibration_dataloader(), 16))
    prepared = qat.prepare(model, calibration[0][0][:2], "w8a8", target)
    qat.calibrate(prepared, calibration)
    integer = qat.convert(prepared)
    with tempfile.TemporaryDirectory() as folder:
        artifact = qat.export(integer, Path(folder) / f"int8{target.artifact}", target=target)
        base = qat.export(model, Path(folder) / "float.onnx", (calibration[0][0][:2],))
        runtime = load(artifact, threads=1)
        batches = islice(data.val_dataloader(), args.batches)
        report = qat.verify(prepared, artifact, batches, float_model=model, strict=False, layerwise=True)
        coverage = runtime.coverage()
        findings = audit(artifact, runtime=runtime, example=calibration[0][0], integer=integer)
        size = artifact.size_bytes / base.size_bytes
    stage = report.stages[-1]
    name = Path(args.data).name if args.data else type(data).__name__.lower()
    off = [layer for layer in report.layers if layer.departed > 0]
    return {
        "model": args.model, "data": name, "target": target.name, "runtime": stage.name,
        "examples": report.examples, "weight_bits": target.weight_bits, "top1_float": report.stage("float").top1,
        "top1": stage.top1, "agreement": stage.agreement, "max_steps": stage.max_steps, "mean_steps": stage.mean_steps,
        "integer": len(coverage.integer) if coverage else None, "float": len(coverage.in_float) if coverage else None,
        "islands": [str(o) for o in coverage.islands] if coverage else None,
        "delegates": coverage.delegates if coverage else None,
        "layers": len(report.layers), "first_layer_off": off[0].site if off else "", "size_ratio": size,
        "saturates": target.needs_vnni and bool(machine.saturation(target.name, machine.cpu())),
        "findings": findings, "seconds": time.perf_counter() - start, "cpu": machine.cpu(),
        "versions": machine.versions(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table, the last line of each model and target."""
    rows = list({(r["model"], r["target"]): r for r in lines}.values())
    header = ["model, data", "target", "n", "top-1, float → target", "agreement", "largest (mean) difference, steps",
              "integer / all operators", "islands", "saturates here", "audit"]  # fmt: skip
    cells = [
        [
            f"{r['model']}, {r['data']}", f"`{r['target']}`", f"{r['examples']:,}",
            f"{r['top1_float']:.2f} → {r['top1']:.2f}", f"{r['agreement']:.2f} %",
            f"{r['max_steps']:.0f} ({r['mean_steps']:.3f})", _share(r), _islands(r),
            "yes" if r["saturates"] else "no", "; ".join(r["findings"]) or "sound",
        ]
        for r in rows
    ]  # fmt: skip
    last = rows[-1]
    versions = ", ".join(f"{k} {v}" for k, v in last["versions"].items() if k not in ("qat", "python"))
    about = f"{last['date']}, {last['cpu']['name']} ({', '.join(last['cpu']['isa'])}); {versions}."
    return f"{about}\n\n{table(header, cells)}"


def _share(row: dict[str, Any]) -> str:
    if row["integer"] is None:
        return "not shown"
    if row["delegates"] is not None:
        return f"{row['integer']} / {row['integer'] + row['float']}, {row['delegates']} delegate"
    return f"{row['integer']} / {row['integer'] + row['float']}"


def _islands(row: dict[str, Any]) -> str:
    found = row["islands"]
    return "" if found is None else ", ".join(found) if 0 < len(found) < 4 else str(len(found) or "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20", choices=["resnet20", "mobilenet_v2"])
    parser.add_argument("--checkpoint", type=Path, help="float weights; none only writes the table")
    parser.add_argument("--data", help="CIFAR-10 as parquet, or a hub name; none is digits")
    parser.add_argument("--targets", nargs="+", default=preset_names("target"))
    parser.add_argument("--batches", type=int, default=None, help="validation batches of 100; all of them by default")
    parser.add_argument("--json", type=Path, default=Path("targets.jsonl"))
    parser.add_argument("--markdown", type=Path, help="the file whose block is rewritten")
    args = parser.parse_args()
    console = Console(width=160)
    if args.checkpoint:
        data: ImageData = HuggingFaceData(path=args.data, batch_size=100) if args.data else Digits(batch_size=100)
        data.setup()
        for target in args.targets:
            row = measure(args, qat.Target.parse(target), data)
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
            console.print({k: v for k, v in row.items() if k not in ("cpu", "versions")})
    text = markdown([json.loads(line) for line in args.json.read_text().splitlines()])
    show(text, args.markdown, BLOCK)


if __name__ == "__main__":
    main()
