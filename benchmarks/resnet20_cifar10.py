"""A published float ResNet-20 through PTQ to onnxruntime, on the whole CIFAR-10 test set.

    uv run --extra hf benchmarks/resnet20_cifar10.py --data ../shared/data/cifar10 \
        --checkpoint ../shared/checkpoints/cifar10_resnet20.th

Prints float top-1, then for each target the parity ladder. Published: 91.73 % (akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.table import Table

import qat
from qat import machine
from qat.data.hf import HuggingFaceData
from qat.models import load_float, resnet20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as parquet, or a hub name")
    parser.add_argument("--checkpoint", type=Path, required=True, help="float ResNet-20")
    parser.add_argument("--recipes", nargs="+", default=["w8a8"])
    parser.add_argument("--targets", nargs="+", default=["onnxruntime", "onnxruntime_vnni"])
    parser.add_argument("--calibration-batches", type=int, default=16, help="of 128 training images")
    args = parser.parse_args()

    console = Console(width=140)
    cpu = machine.cpu()
    console.print(f"{cpu['name']} {cpu['isa']}, {machine.versions()}")
    data = HuggingFaceData(path=str(args.data), batch_size=128)
    data.setup()
    model = resnet20()
    console.print(load_float(model, args.checkpoint, rename={"linear": "fc"}))
    calibration = list(islice(data.calibration_dataloader(), args.calibration_batches))
    for recipe in args.recipes:
        for target in args.targets:
            prepared = qat.prepare(model, calibration[0][0][:2], recipe, target)
            qat.calibrate(prepared, calibration)
            with tempfile.TemporaryDirectory() as folder:
                artifact = qat.export(qat.convert(prepared), Path(folder) / "model.onnx")
                report = qat.verify(prepared, artifact, data.val_dataloader(), float_model=model, strict=False)
            table = Table(title=f"PTQ {recipe} on {target}: {report.examples} images", title_justify="left")
            for column in ("stage", "top-1, %", "agreement, %", "max, steps", "mean, steps"):
                table.add_column(column)
            for s in report.stages:
                top1 = f"{s.top1:.2f}"
                table.add_row(s.name, top1, f"{s.agreement:.2f}", f"{s.max_steps:.1f}", f"{s.mean_steps:.4f}")
            console.print(table)


if __name__ == "__main__":
    main()
