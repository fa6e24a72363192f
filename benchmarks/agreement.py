"""Who stays closer to float: our ONNX file or `quantize_static`'s, same checkpoint, same calibration; a table of docs.

    uv run --extra hf benchmarks/agreement.py --data ../shared/data/cifar10 --markdown docs/runtimes.md \
        --checkpoint ../shared/checkpoints/cifar10_resnet20.th

Both files run in onnxruntime with its default optimizations, over the whole validation split. Agreement is with the
float model in torch. Neither side is trained: ours is `task=ptq`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from itertools import islice
from pathlib import Path

import torch
from markdown import show, table
from runtimes import peer_onnxruntime
from torch import Tensor, nn

import qat
from qat import machine
from qat.artifact import Artifact
from qat.data.hf import HuggingFaceData
from qat.models import build, load_float
from qat.runtime import Runtime, load

BLOCK = "agreement"
BATCHES = 16  # of calibration
OURS = ("onnxruntime", "onnxruntime_vnni")


def files(model: nn.Module, batches: list[Tensor], folder: Path) -> dict[str, Artifact]:
    """Ours for each target, theirs in two forms: for all CPUs (7 bits) there is an option too, `reduce_range`."""
    found = {}
    for target in OURS:
        prepared = qat.prepare(model, batches[0][:2], "w8a8", target)
        qat.calibrate(prepared, batches)
        found[f"qat, target={target}"] = qat.export(qat.convert(prepared), folder / f"{target}.onnx")
    for title, narrow in (("quantize_static, reduce_range=True", True), ("quantize_static", False)):
        place = folder / title.replace(" ", "")
        place.mkdir()
        path = peer_onnxruntime(model, torch.cat(batches), place, 1, reduce_range=narrow)
        found[title] = Artifact(path=path, target=None, inputs=(), outputs=())
    return found


@torch.no_grad()
def compare(model: nn.Module, runtimes: dict[str, Runtime], data: HuggingFaceData) -> list[list[str]]:
    """A line for each: top-1, agreement with float, signal to error of the logits."""
    images = right = 0
    correct, agree = dict.fromkeys(runtimes, 0), dict.fromkeys(runtimes, 0)
    error, signal = dict.fromkeys(runtimes, 0.0), 0.0
    for x, y in data.val_dataloader():
        reference = model(x)
        images, right = images + len(x), right + int((reference.argmax(1) == y).sum())
        signal += float(reference.square().sum())
        for name, run in runtimes.items():
            found = run(x)
            correct[name] += int((found.argmax(1) == y).sum())
            agree[name] += int((found.argmax(1) == reference.argmax(1)).sum())
            error[name] += float((found - reference).square().sum())
    lines = [["float, torch", f"{100 * right / images:.2f} %", "", ""]]
    for name in runtimes:
        decibel = 10 * torch.log10(torch.tensor(signal / error[name]))
        lines.append(
            [name, f"{100 * correct[name] / images:.2f} %", f"{100 * agree[name] / images:.2f} %", f"{decibel:.1f} dB"]
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="float weights of ResNet-20")
    parser.add_argument("--data", required=True, help="CIFAR-10 as parquet, or a hub name")
    parser.add_argument("--markdown", type=Path, help="the file whose block is rewritten")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # the peer deprecates itself
    data = HuggingFaceData(path=args.data, batch_size=100)
    data.setup()
    model = build("resnet20", data.num_classes)
    load_float(model, args.checkpoint, rename={"linear": "fc"})
    model.eval()
    batches = [x for x, _ in islice(data.calibration_dataloader(), BATCHES)]
    with tempfile.TemporaryDirectory() as folder:
        runtimes = {name: load(file) for name, file in files(model, batches, Path(folder)).items()}
        lines = compare(model, runtimes, data)
    cpu = machine.cpu()
    version = machine.versions()["onnxruntime"]
    about = f"{time.strftime('%Y-%m-%d')}, {cpu['name']} ({', '.join(cpu['isa'])}), onnxruntime {version}."
    text = f"{about}\n\n{table(['resnet20, cifar10', 'top-1', 'agreement with float', 'signal to error'], lines)}"
    show(text, args.markdown, BLOCK)


if __name__ == "__main__":
    main()
