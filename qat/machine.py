"""The machine that a number was taken on: CPU, instruction set, versions. A number without them says little."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ISA = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
SECONDS = 10  # for git on a slow disk
X86 = ("x86_64", "amd64", "i386", "i686", "x86")
PACKAGES = (
    "qat",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "executorch",
)


def cpu() -> dict[str, object]:
    """Name, the instruction sets that matter for integers, cores and threads."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "isa": [f for f in ISA if f in flags],
        "vnni": bool({"avx512_vnni", "avx_vnni", "asimddp"} & flags),
        "arch": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def saturation(target: str, cpu: dict[str, object]) -> str:
    """What to say before training for a target whose integer kernels need VNNI; empty where `cpu` has it, or is no x86.

    Without it x86 adds pairs of u8 x s8 products in 16 bits: 2 * 255 * 127 = 64,770 does not fit into 32,767, whereas
    2 * 255 * 63 = 32,130 of 7-bit weights does.
    """
    if cpu["vnni"] or str(cpu["arch"]).lower() not in X86:
        return ""
    isa = cpu["isa"]
    assert isinstance(isa, list)
    return (
        f"target {target} will not be exact on this machine: {cpu['name']} has no VNNI ({', '.join(isa) or 'none'}), "
        "and sums of 8-bit products saturate. target.weight_bits=7 is exact here; the parity table will say how far "
        "8 bits are off"
    )


def commit(folder: str | Path = ".") -> str:
    """The commit that the code in a folder is at; empty outside a repository, or without git."""
    try:
        found = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
