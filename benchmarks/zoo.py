"""Every model through prepare, one training step, convert, export and verify; writes the table of docs/zoo.md.

    uv run --extra timm benchmarks/zoo.py --record benchmarks/zoo.jsonl --markdown docs/zoo.md
    uv run benchmarks/zoo.py --models torchvision/resnet18 timm/vit_tiny_patch16_224 --size 224

With `--record`, figures are kept there, and `--markdown` makes its table of all of them; `--missing` runs the others,
and `--models` without a name none.

Each model runs in a process of its own with a time limit. Weights are random; BatchNorm's statistics and gamma are
drawn from ranges that a wrong eps, momentum or sign would show in, and parameters that start at zero (layer scale, a
vision transformer's head) are drawn too. Images are noise, so that agreement says little on a net of random weights:
two classes tie easily. The largest difference, in steps of the output's grid, says more.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import multiprocessing
import resource
import sys
import time
import warnings
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
import zoo_table
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

import qat
from qat import machine
from qat.layers import FakeQuantFunction, FakeQuantWeight
from qat.placement.prepared import PreparedModel, quantizers

# 60 of timm, fixed before the first run: one or two of a family
TIMM = """
resnet18 resnetv2_50 res2net50_26w_4s resnest14d skresnet18 cspresnet50 darknet53 dla34 dpn68 vgg11 vovnet39a xception41
inception_v4 hrnet_w18_small ghostnet_100 mobilenetv3_large_100 mobilenetv4_conv_small mobileone_s0 repvgg_a0 mixnet_s
efficientnet_lite0 tf_efficientnet_b0 regnetx_002 regnetz_b16 nf_resnet50 dm_nfnet_f0 rexnet_100 lcnet_050 hgnetv2_b0
selecsls42 gernet_s bat_resnext26ts convnext_atto convnextv2_atto convmixer_768_32 inception_next_tiny repvit_m0_9
starnet_s1 efficientvit_b0 fastvit_t8 edgenext_xx_small mobilevit_xxs mobilevitv2_050 poolformer_s12 focalnet_tiny_srf
vit_tiny_patch16_224 deit_tiny_patch16_224 eva02_tiny_patch14_224 cait_xxs24_224 xcit_nano_12_p16_224 pit_ti_224
mixer_s32_224 resmlp_12_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 levit_128s pvt_v2_b0 davit_tiny
coatnet_nano_rw_224 maxvit_nano_rw_256
"""
EXAMPLES = 8
FEWER = {"torchvision/vit_h_14": 2, "torchvision/vit_l_16": 2}  # examples, where 8 take a TFLOP for one forward
SMALLER = {"torchvision/vit_h_14": 112}  # pixels, of 632 M parameters; its position embedding is built for them
SIZE = 64  # pixels, where the model takes that
RATE = 1e-3  # of the training step
KIB_PER_GB = 1e6 / 1.024
NOISE = 1e-6  # of each sum, about what float32 sums in another order differ by
LAYERS = (FakeQuantWeight, FakeQuantFunction)


def names() -> list[str]:
    return [f"torchvision/{n}" for n in torchvision.models.list_models(module=torchvision.models)] + [
        f"timm/{n}" for n in TIMM.split()
    ]


def load(name: str, size: int | None) -> tuple[nn.Module, int]:
    """The model with random weights, and the image size for it."""
    package, _, leaf = name.partition("/")
    if package == "timm":
        timm = importlib.import_module("timm")
        model = timm.create_model(leaf, pretrained=False)
        needs = ("window", "maxvit", "bat_")  # sizes that windows divide
        fixed = model.default_cfg.get("fixed_input_size") or any(n in leaf for n in needs)
        return model, size or (model.default_cfg["input_size"][-1] if fixed else 2 * SIZE)
    least = {"inception_v3": 299}  # its auxiliary head, in training, needs more than its body
    settings: dict[str, Any] = {"init_weights": False} if leaf in ("googlenet", "inception_v3") else {}
    smallest = torchvision.models.get_model_weights(leaf).DEFAULT.meta["min_size"][0]  # type: ignore[attr-defined]
    usual = 224 if leaf.startswith(("vit", "swin", "maxvit")) else max(SIZE, least.get(leaf, smallest))
    size = size or SMALLER.get(name, usual)
    if leaf.startswith("vit"):
        settings["image_size"] = size
    return torchvision.models.get_model(leaf, weights=None, **settings), size


@torch.no_grad()
def randomize(model: nn.Module) -> nn.Module:
    """BatchNorm as after an unkind training, and no parameter that is zero throughout."""
    generator = torch.Generator().manual_seed(0)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            uniform(module.weight, 0.5, 1.5)
            module.weight[torch.rand(len(module.weight), generator=generator) < 0.1] *= -1  # mirrored channels
            uniform(module.bias, -0.3, 0.3)
            if module.running_mean is not None and module.running_var is not None:
                uniform(module.running_mean, -0.3, 0.3)
                uniform(module.running_var, 0.3, 2.0)
    for parameter in model.parameters():
        if parameter.abs().max() < 1e-3:
            uniform(parameter, -0.5, 0.5)
    return model


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(7)  # dropout
    return [t.detach().clone() for t in pytree.tree_leaves(model(x)) if isinstance(t, Tensor)]


def off_difference(prepared: nn.Module, model: nn.Module, x: Tensor) -> dict[str, float]:
    """Largest difference with fake-quant off, relative to the largest output: eval, train, and back and forth."""
    ours, theirs = in_all_modes(prepared, x), in_all_modes(model, x)
    found: dict[str, float] = {}
    for (name, mine), (_, wanted) in zip(ours, theirs, strict=True):
        worst = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(mine, wanted, strict=True)
        )
        found[name] = max(found.get(name, 0.0), worst)
    return found


def off_floor(prepared: nn.Module, x: Tensor) -> dict[str, float]:
    """The same differences of the prepared model to itself when each layer's sums move by float32's rounding."""
    shaken = copy.deepcopy(prepared)
    rounded_otherwise(shaken)
    return off_difference(shaken, prepared, x)


@torch.no_grad()
def in_all_modes(model: nn.Module, x: Tensor) -> list[tuple[str, list[Tensor]]]:
    """Outputs in evaluation, in training, and in both again, of a copy: BatchNorm learns on the way."""
    twin = copy.deepcopy(model)
    if isinstance(twin, PreparedModel):
        qat.fake_quant(twin, enabled=False)
    modes = (("eval", False), ("train", True), ("again", False), ("again", True))
    return [(name, outputs(twin.train(mode), x)) for name, mode in modes]


def bad_gradients(prepared: nn.Module, x: Tensor) -> list[str]:
    """Trainable tensors without a finite gradient in a training step, or not finite after it."""
    prepared.train().zero_grad()
    total = torch.zeros(())
    for y in pytree.tree_leaves(prepared(x)):
        if isinstance(y, Tensor) and y.ndim == 2:
            total = total + F.cross_entropy(y, torch.arange(len(x)) % y.shape[1])
    total.backward()
    torch.optim.SGD(prepared.parameters(), RATE).step()
    return [
        name
        for name, p in prepared.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all() or not torch.isfinite(p).all()
    ]


def prove_named(name: str, size: int | None) -> dict[str, Any]:
    """All figures of one model of the zoo, with random weights and images."""
    torch.manual_seed(0)
    model, size = load(name, size)
    about = {"threads": torch.get_num_threads(), "day": f"{datetime.now(UTC):%Y-%m-%d}", "cpu": machine.cpu()["name"]}
    x = torch.randn(FEWER.get(name, EXAMPLES), 3, size, size)
    return {"model": name, "size": size, **about, **prove(randomize(model), x)}


def prove(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """All figures of one model, whose weights are gone afterwards."""
    row: dict[str, Any] = {}

    def timed(key: str, function: Any) -> Any:
        start, worked = time.perf_counter(), time.process_time()
        value = function()
        row[f"{key}_s"], row[f"{key}_cpu_s"] = time.perf_counter() - start, time.process_time() - worked
        peak_after(key)
        return value

    def peak_after(key: str) -> None:
        row.setdefault("peak_gb", {})[key] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KIB_PER_GB

    prepared = timed("prepare", lambda: qat.prepare(model.eval(), x[:2]))
    found = quantizers(prepared)
    row |= {"quantizers": len(found), "int8_macs": prepared.plan.int8_mac_share}
    row["float_ops"] = dict(sorted(_counted(op.kind.split()[0] for op in prepared.plan.in_float).items()))
    row["off"] = off_difference(prepared, model, x)
    if max(row["off"].values()) > zoo_table.SAME:
        row["off_floor"] = off_floor(prepared, x)
    peak_after("off")
    float_bytes = sum({id(t): t.nbytes for t in [*model.parameters(), *model.buffers()]}.values())
    reached, own = _reached(model, x), {n for n, p in model.named_parameters() if p.requires_grad}
    model.to("meta")  # the largest needs the room, and a step has three times its size: weights, quantized, gradients
    twin = copy.deepcopy(prepared)  # not calibrated: ranges start with its batch, far from the running statistics
    row["bad_gradients"] = [n for n in bad_gradients(twin, x) if n in reached or n not in own]
    del twin
    peak_after("step")
    qat.calibrate(prepared.eval(), [x])
    with TemporaryDirectory() as folder:
        integer = timed("convert", lambda: qat.convert(prepared))
        artifact = timed("export", lambda: qat.export(integer, Path(folder) / "int8.onnx"))
        row["file_ratio"] = artifact.size_bytes / float_bytes
        report = qat.verify(prepared, artifact, [x], strict=False)
    for key, stage in (("torch", report.stages[-3]), ("off_ort", report.stages[-2]), ("ort", report.stages[-1])):
        row[key] = {"agreement": stage.agreement, "max": stage.max_steps, "mean": stage.mean_steps}
    row["floor"] = noise_floor(prepared, x, report.step or 1.0)
    peak_after("verify")
    return row


@torch.no_grad()
def noise_floor(prepared: nn.Module, x: Tensor, step: float) -> float:
    """Mean difference, in steps, of the fake-quant model to itself when each layer's sums move by float32's rounding.

    Behind the layers and not at the input: the input's quantizer takes up what is far from a tie.
    """
    still = outputs(prepared.eval(), x)
    hooks = rounded_otherwise(prepared)
    pairs = zip(still, outputs(prepared, x), strict=True)
    for hook in hooks:
        hook.remove()
    return max(float((a - b).abs().mean()) for a, b in pairs) / step


def rounded_otherwise(model: nn.Module) -> list[RemovableHandle]:
    """Hooks that move the sums of each layer by `NOISE`, as adding them up in another order does."""
    generator = torch.Generator().manual_seed(1)

    def moved(layer: nn.Module, args: Any, y: Tensor) -> Tensor:
        return y * (1 + NOISE * torch.randn(y.shape, generator=generator))

    return [m.register_forward_hook(moved) for m in model.modules() if isinstance(m, LAYERS)]


def _reached(model: nn.Module, x: Tensor) -> set[str]:
    """Parameters that the float model's own loss reaches at all; BatchNorm learns on the way."""
    model.train()
    sum(first.sum() for first in pytree.tree_leaves(model(x)) if isinstance(first, Tensor)).backward()
    found = {n for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def _counted(kinds: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def in_own_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """A model's row. The process is a fork: it has this one's imports, and gives its memory back when it ends."""
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=_send_row, args=(sender, name, args))
    process.start()
    sender.close()
    try:
        if receiver.poll(args.limit):
            return receiver.recv()
        process.kill()
        return {"model": name, "error": f"not done in {args.limit} s"}
    except EOFError:  # it sent nothing
        process.join()
        return {"model": name, "error": f"exit {process.exitcode}"}
    finally:
        process.join()


def _send_row(sender: Connection, name: str, args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    try:
        row = prove_named(name, args.size)
    except Exception as error:
        row = {"model": name, "error": f"{type(error).__name__}: {error}"[:600]}
    sender.send(row)


def in_order(record: dict[Any, zoo_table.Row]) -> list[zoo_table.Row]:
    """Rows as the list of names has them, small images first."""
    order = {name: i for i, name in enumerate(names())}
    return sorted(record.values(), key=lambda row: (order.get(row["model"], len(order)), row.get("size") or 0))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", help="torchvision/NAME or timm/NAME; all by default, none when empty")
    parser.add_argument("--size", type=int, help="pixels, for all; by default small, where the model takes that")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds for a model")
    parser.add_argument(
        "--record", type=Path, help="keep figures here, one model and size a line, in place of older ones"
    )
    parser.add_argument("--missing", action="store_true", help="only models that have no figures in the record")
    parser.add_argument("--markdown", type=Path, help="write the table of the record, or of this run, here")
    args = parser.parse_args(arguments)
    console, record, rows = Console(soft_wrap=True), zoo_table.read(args.record), []
    known = {model for model, _ in record}
    wanted = [n for n in (names() if args.models is None else args.models) if not (args.missing and n in known)]
    for package in ("qat.verify", "qat.export.onnx", *(["timm"] if any(n.startswith("timm/") for n in wanted) else [])):
        importlib.import_module(package)  # once, for all processes
    for name in track(wanted, "zoo", console=console, transient=True, disable=not console.is_terminal):
        row = in_own_process(name, args)
        rows.append(row)
        if "error" not in row:
            record.pop((name, None), None)
        record[zoo_table.key(row)] = row
        if args.record:
            zoo_table.write(args.record, in_order(record))
        console.print(f"{zoo_table.verdict(row):5} " + " | ".join(zoo_table.cells(row)), highlight=False)
    if args.markdown:
        missing = [n for n in names() if n not in {model for model, _ in record}]
        args.markdown.write_text(zoo_table.markdown(in_order(record), examples=EXAMPLES, fewer=FEWER, missing=missing))
    return 0 if zoo_table.accepted(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
