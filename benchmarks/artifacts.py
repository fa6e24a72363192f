"""Prepare, convert and export times; file size and onnxruntime latency of int8 against float.

    uv run benchmarks/artifacts.py

Both files run in one process, one call of each in turn; medians. Weights are random: they change neither size nor time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import qat
from qat import machine
from qat.models import build
from qat.runtime import load
from qat.runtime.latency import interleaved


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--target", default="onnxruntime")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    cpu = machine.cpu()
    console = Console(width=140)
    console.print(f"{cpu['name']} {cpu['isa']}, {args.threads} threads, {machine.versions()}")
    table = Table(title=f"{args.size} px, batch {args.batch}, target {args.target}", title_justify="left")
    for column in ("model", "prepare, s", "convert, s", "export, s", "float, MB", "int8, MB", "ratio", "float, ms",
                   "int8, ms", "ratio"):  # fmt: skip
        table.add_column(column, justify="right")
    for name in args.models:
        torch.manual_seed(0)
        model = build(name, 1000).eval()
        x = torch.randn(4, 3, args.size, args.size)
        clock = [time.perf_counter()]
        prepared = qat.prepare(model, x[:2], "w8a8", args.target)
        clock.append(time.perf_counter())
        qat.calibrate(prepared, [x])
        start = time.perf_counter()
        integer = qat.convert(prepared)
        converted = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            int8 = qat.export(integer, Path(folder) / "int8.onnx")
            exported = time.perf_counter()
            base = qat.export(model, Path(folder) / "float.onnx", (x[:2],))
            sizes = base.size_bytes / 1e6, int8.size_bytes / 1e6
            runtimes = {"float": load(base, threads=args.threads), "int8": load(int8, threads=args.threads)}
            ms = interleaved(runtimes, x[: args.batch], repeats=args.repeats)
        table.add_row(
            name, f"{clock[1] - clock[0]:.2f}", f"{converted - start:.2f}", f"{exported - converted:.2f}",
            f"{sizes[0]:.3f}", f"{sizes[1]:.3f}", f"{sizes[1] / sizes[0]:.3f}",
            f"{ms['float']:.2f}", f"{ms['int8']:.2f}", f"{ms['int8'] / ms['float']:.2f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
