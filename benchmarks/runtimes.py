"""Our artefacts beside what a user would take instead: latency, size, distance to float; a table of docs/runtimes.md.

    uv run --extra bench --extra openvino --extra inductor --with nncf benchmarks/runtimes.py --models mobilenet_v2 \
        --json runtimes.jsonl --markdown docs/runtimes.md

    onnxruntime   onnxruntime.quantization.quantize_static, QDQ, per channel, of the same float ONNX file
    openvino      nncf.quantize of the same float model, run with OpenVINO's default hints, ours with float32
    executorch    PT2E with ExecuTorch's XNNPACKQuantizer, static batch (ours is dynamic)
    inductor      the float model, compiled by AOTInductor

Both sides run in one process, one call of each in turn, through the same runner; medians. Weights are random, with
BatchNorm's statistics taken from the images: neither time nor size depends on them. What is left of float is the ratio
of signal to error of the logits, in dB: with random weights there are no classes to agree on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from markdown import show, table
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

import qat
from qat import machine
from qat.artifact import Artifact
from qat.models import build
from qat.runtime import Runtime, load, runtime_module
from qat.runtime.latency import interleaved

BLOCK = "runtimes"
MODELS = (
    "mobilenet_v2", "resnet18", "resnet50", "shufflenet_v2_x1_0", "mobilenet_v3_large", "efficientnet_b0", "vit_b_16",
)  # fmt: skip
TO_REACH = {"onnxruntime": 1.0, "onnxruntime_vnni": 1.0, "openvino": 1.05, "executorch": 1.05, "inductor": 0.8}
SIZE_TO_REACH = 0.27


def pictures(count: int, size: int, seed: int) -> Tensor:
    """Smooth noise `[count, 3, size, size]`, about normal: as pictures, neighbours resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 8, size // 8, generator=generator)
    return 2 * F.interpolate(coarse, size=(size, size), mode="bilinear")


def with_statistics(model: nn.Module, x: Tensor) -> nn.Module:
    """The model in evaluation mode, its BatchNorms with the statistics of `x`.

    ViT's head and class token are zeros before training, which would leave no logits, or nothing but errors in them.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(token := getattr(module, "class_token", None), nn.Parameter):
            nn.init.normal_(token)
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        model.train()(x)
    return model.eval()


def peer_onnxruntime(
    model: nn.Module, calibration: Tensor, folder: Path, batch: int, *, reduce_range: bool = False
) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.batches: Iterator[dict[str, np.ndarray]] = ({name: x[None].numpy()} for x in calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    source = qat.export(model, folder / "peer_float.onnx", (calibration[:2],)).path
    ready, result = folder / "peer_ready.onnx", folder / "peer.onnx"
    quant_pre_process(source, ready)
    name = onnx.load(source).graph.input[0].name
    quantize_static(ready, result, Reader(name), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    reduce_range=reduce_range)  # fmt: skip
    return result


def peer_openvino(model: nn.Module, calibration: Tensor, folder: Path, batch: int) -> Path:
    import nncf
    import openvino

    source = openvino.convert_model(qat.export(model, folder / "peer_float.onnx", (calibration[:2],)).path)
    kind = nncf.ModelType.TRANSFORMER if any(isinstance(m, nn.LayerNorm) for m in model.modules()) else None
    dataset = nncf.Dataset([x[None].numpy() for x in calibration])
    openvino.save_model(nncf.quantize(source, dataset, model_type=kind), folder / "peer.xml", compress_to_fp16=False)
    return folder / "peer.xml"


def peer_executorch(model: nn.Module, calibration: Tensor, folder: Path, batch: int) -> Path:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    example = (calibration[:1].repeat(batch, 1, 1, 1),)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(torch.export.export(model, example, strict=True).module(), quantizer)
    with torch.no_grad():
        for x in calibration.split(batch):
            if len(x) == batch:
                prepared(x)
    program = torch.export.export(convert_pt2e(prepared), example)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    (folder / "peer.pte").write_bytes(lowered.to_executorch().buffer)
    return folder / "peer.pte"


def peer_inductor(model: nn.Module, calibration: Tensor, folder: Path, batch: int) -> Path:
    return qat.export(model, folder / "peer.pt2", (calibration[:2],), target="inductor").path


PEERS: dict[str, Callable[[nn.Module, Tensor, Path, int], Path]] = {
    "onnxruntime": peer_onnxruntime,
    "onnxruntime_vnni": peer_onnxruntime,
    "openvino": peer_openvino,
    "executorch": peer_executorch,
    "inductor": peer_inductor,
}


def peer_runtime(peer: Artifact, threads: int) -> Runtime:
    """The peer as its user runs it: OpenVINO with its own choice of precision for what is left in float."""
    if peer.kind == ".xml":
        runtime: Runtime = runtime_module("openvino").OpenVINORuntime(peer, threads=threads, exact=False)
        return runtime
    return load(peer, threads=threads)


def signal_to_error(run: Runtime, reference: Tensor, x: Tensor, batch: int) -> float:
    """Of the logits, in dB; a difference that all images share is left in."""
    found = torch.cat([run(one) for one in x.split(batch) if len(one) == batch])
    error = (found - reference[: len(found)]).square().sum()
    return float(10 * torch.log10(reference[: len(found)].square().sum() / error))


def compare(name: str, target: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each batch size: ours beside the peer, the same float weights, the same calibration images."""
    torch.manual_seed(0)
    calibration, test = (pictures(64, args.size, seed) for seed in (0, 1))
    model = with_statistics(build(name, 1000), calibration[:32])
    with torch.no_grad():
        reference = torch.cat([model(x) for x in test.split(16)])
    start = time.perf_counter()
    prepared = qat.prepare(model, calibration[:2], "w8a8", target)
    qat.calibrate(prepared, calibration.split(16))
    integer = qat.convert(prepared)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        suffix = qat.Target.parse(target).artifact
        ours = qat.export(integer, folder / f"ours{suffix}", target=target)
        seconds = time.perf_counter() - start
        size = qat.export(model, folder / f"float{suffix}", (calibration[:2],)).size_bytes
        mine = load(ours, threads=args.threads)
        coverage = mine.coverage()
        for batch in args.batches:
            path = PEERS[target](model, calibration, folder, batch)
            peer = Artifact(path=path, target=ours.target if target == "inductor" else None, inputs=(), outputs=())
            theirs = peer_runtime(peer, args.threads)
            peer_coverage = theirs.coverage()
            x = test[:1] if batch == 1 else test[:batch]
            float_size = peer.size_bytes if target == "inductor" else size
            both = {"ours": mine, "peer": theirs}
            ms = interleaved(both, x, repeats=args.repeats[args.batches.index(batch)])
            yield {
                "model": name, "target": target, "batch": batch, "pixels": args.size, "ms": ms,
                "ratio": ms["ours"] / ms["peer"],
                "size": {"ours": ours.size_bytes, "peer": peer.size_bytes, "float": float_size},
                "decibel": {k: signal_to_error(r, reference, test, batch) for k, r in both.items()},
                "coverage": {"ours": str(coverage), "peer": str(peer_coverage)},
                "delegates": [c.delegates if c else None for c in (coverage, peer_coverage)],
                "export_s": seconds, "threads": args.threads, "cpu": machine.cpu(), "versions": machine.versions(),
                "date": time.strftime("%Y-%m-%d"),
            }  # fmt: skip


def markdown(lines: list[dict[str, Any]]) -> str:
    """The table, the last line of each model, target and batch size."""
    rows = sorted({(r["target"], r["model"], r["batch"]): r for r in lines}.values(), key=_order)
    header = ["beside", "model", "batch", "ours, ms", "theirs, ms", "ratio", "to reach", "file / float",
              "signal to error, ours (theirs)", "delegates, ours (theirs)"]  # fmt: skip
    cells = [
        [
            f"`{r['target']}`", r["model"], r["batch"], f"{r['ms']['ours']:.1f}", f"{r['ms']['peer']:.1f}",
            _marked(r["ratio"], TO_REACH[r["target"]]), f"{TO_REACH[r['target']]:g}",
            _marked(r["size"]["ours"] / r["size"]["float"], SIZE_TO_REACH),
            f"{r['decibel']['ours']:.1f} dB ({r['decibel']['peer']:.1f})",
            "" if r["delegates"][0] is None else f"{r['delegates'][0]} ({r['delegates'][1]})",
        ]
        for r in rows
    ]  # fmt: skip
    last = lines[-1]
    packages = ", ".join(f"{k} {v}" for k, v in last["versions"].items() if k not in ("qat", "python"))
    about = (
        f"{last['date']}, {last['cpu']['name']} ({', '.join(last['cpu']['isa'])}), {last['threads']} thread, "
        f"{last['pixels']} px; {packages}. What falls short is in bold."
    )
    return f"{about}\n\n{table(header, cells)}"


def _order(row: dict[str, Any]) -> tuple[int, int, int]:
    return list(PEERS).index(row["target"]), MODELS.index(row["model"]), row["batch"]


def _marked(value: float, limit: float) -> str:
    return f"{value:.3f}" if value <= limit else f"**{value:.3f}**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS)
    parser.add_argument("--targets", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--repeats", nargs="+", type=int, default=[30, 5], help="timed calls, for each batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runtimes.jsonl"))
    parser.add_argument("--markdown", type=Path, help="the file whose block is rewritten")
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # peers deprecate themselves
    torch.set_num_threads(args.threads)
    console = Console(width=160)
    for name in args.models:
        for target in args.targets:
            for row in compare(name, target, args):
                with args.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                console.print({k: v for k, v in row.items() if k not in ("cpu", "versions")})
    text = markdown([json.loads(line) for line in args.json.read_text().splitlines()])
    show(text, args.markdown, BLOCK)


if __name__ == "__main__":
    main()
