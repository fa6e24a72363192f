"""Cost of a QAT step against a float step: time, interleaved in one process, and peak memory, each in its own process.

    uv run benchmarks/step_cost.py --models mobilenet_v2 resnet18
    uv run --extra bench benchmarks/step_cost.py --peers

Rows: ranges learned or frozen; eager, or with the regional compile; with `--peers` also torch.ao's FX mode and torchao
PT2E with ExecuTorch's quantizer, while they collect ranges. Memory is the growth of the resident set over three
steps (its maximum, less what is resident before the first), so that the interpreter and torch itself do not count.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import qat
from qat import machine
from qat.compile import compile_regions
from qat.models import build

VARIANTS = ("float", "learning", "frozen", "learning, compiled", "frozen, compiled")


def variant(name: str, model: nn.Module, x: Tensor) -> nn.Module:
    """The model as a row of the table trains it."""
    if name == "float":
        return model
    if name in PEERS:
        return PEERS[name](model, x)
    prepared = qat.prepare(model, x[:2])
    qat.calibrate(prepared, [x])
    qat.observers(prepared, enabled=name.startswith("learning"))
    if name.endswith("compiled") and not compile_regions(prepared):
        raise SystemExit("no compiler here")
    return prepared.train()


def torch_ao_fx(model: nn.Module, x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    return prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (x,))


def torchao_pt2e(model: nn.Module, x: Tensor) -> nn.Module:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import move_exported_model_to_train
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_qat=True))
    exported = torch.export.export(model, (x,), strict=True).module()  # without strict, resnet18's shared ReLU fails
    return move_exported_model_to_train(prepare_qat_pt2e(exported, quantizer))


PEERS = {"torch.ao FX": torch_ao_fx, "torchao PT2E": torchao_pt2e}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    start = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    return time.perf_counter() - start


def batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    return torch.randn(args.batch, 3, args.size, args.size), torch.randint(0, 1000, (args.batch,))


def memory(args: argparse.Namespace) -> None:
    """Print megabytes that three steps of one variant add to this process."""
    x, y = batch(args)
    model = variant(args.memory_of, build(args.models[0], 1000).train(), x)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    for _ in range(3):
        step(model, optimizer, x, y)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print((int(status["VmHWM"].split()[0]) * 1024 - before) / 1e6)


def memory_of(name: str, model: str, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--models", model, "--memory-of", name]
    for key in ("size", "batch", "threads"):
        command += [f"--{key}", str(getattr(args, key))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--memory-of", choices=(*VARIANTS, *PEERS), help=argparse.SUPPRESS)
    parser.add_argument("--peers", action="store_true", help="also torch.ao FX and torchao PT2E (extra `bench`)")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # peers deprecate themselves
    variants = (*VARIANTS, *PEERS) if args.peers else VARIANTS
    if args.memory_of:
        return memory(args)

    x, y = batch(args)
    cpu = machine.cpu()
    console = Console(width=140)
    console.print(f"{cpu['name']} {cpu['isa']}, {args.threads} threads, {machine.versions()}")
    for name in args.models:
        start = time.perf_counter()
        models = {v: variant(v, build(name, 1000).train(), x) for v in variants}
        prepared_in = time.perf_counter() - start
        optimizers = {v: torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9) for v, m in models.items()}
        taken: dict[str, list[float]] = {v: [] for v in variants}
        for round_ in range(args.rounds + 2):
            for v, model in models.items():
                seconds = step(model, optimizers[v], x, y)
                if round_ >= 2:  # warm
                    taken[v].append(seconds)
        table = Table(title=f"{name}, {args.size} px, batch {args.batch}; prepared in {prepared_in:.1f} s")
        for column in ("step", "ms", "x float", "memory, MB", "x float"):
            table.add_column(column, justify="left" if column == "step" else "right")
        base, base_memory = statistics.median(taken["float"]), memory_of("float", name, args)
        for v in variants:
            ms, mb = statistics.median(taken[v]), memory_of(v, name, args)
            table.add_row(v, f"{1e3 * ms:.0f}", f"{ms / base:.2f}", f"{mb:.0f}", f"{mb / base_memory:.2f}")
        console.print(table)
    return None


if __name__ == "__main__":
    main()
