"""Every model through prepare, one training step, convert, export and verify; writes the table of docs/zoo.md.

    uv run --extra timm benchmarks/zoo.py --markdown docs/zoo.md
    uv run benchmarks/zoo.py --models torchvision/resnet18 timm/vit_tiny_patch16_224

Each model runs in a process of its own with a time limit. Weights are random; BatchNorm's statistics and gamma are
drawn from ranges that a wrong eps, momentum or sign would show in, and parameters that start at zero (layer scale, a
vision transformer's head) are drawn too. Images are noise, so that agreement says little on a net of random weights:
two classes tie easily. The largest difference, in steps of the output's grid, says more.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
import warnings
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torchvision
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import qat
from qat import machine
from qat.errors import QatError
from qat.placement.prepared import quantizers

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
SIZE = 64  # pixels, where the model takes that
SAME = 1e-5  # of the largest output: torch's closed attention and the opened one add up in another order
MEAN = 2.0  # steps: what sums in another order leave of a deep net; above it, the floor of that net has to explain it
NOISE = 1e-6  # of each input value, about what float32 sums in another order differ by
FLOOR = 2.0  # times: two draws of the same noise differ by less


def names() -> list[str]:
    return [f"torchvision/{n}" for n in torchvision.models.list_models(module=torchvision.models)] + [
        f"timm/{n}" for n in TIMM.split()
    ]


def load(name: str, size: int | None) -> tuple[nn.Module, int]:
    """The model with random weights, and the image size for it."""
    package, _, leaf = name.partition("/")
    if package == "timm":
        import timm

        model = timm.create_model(leaf, pretrained=False)
        needs = ("window", "maxvit", "bat_")  # sizes that windows divide
        fixed = model.default_cfg.get("fixed_input_size") or any(n in leaf for n in needs)
        return model, size or (model.default_cfg["input_size"][-1] if fixed else 2 * SIZE)
    least = {"inception_v3": 299}  # its auxiliary head, in training, needs more than its body
    settings = {"init_weights": False} if leaf in ("googlenet", "inception_v3") else {}
    smallest = torchvision.models.get_model_weights(leaf).DEFAULT.meta["min_size"][0]  # type: ignore[attr-defined]
    usual = 224 if leaf.startswith(("vit", "swin", "maxvit")) else max(SIZE, least.get(leaf, smallest))
    return torchvision.models.get_model(leaf, weights=None, **settings), size or usual


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


@torch.no_grad()
def off_difference(prepared: nn.Module, model: nn.Module, x: Tensor) -> dict[str, float]:
    """Largest difference with fake-quant off, relative to the largest output: eval, train, and back and forth."""
    ours, theirs = copy.deepcopy(prepared), copy.deepcopy(model)
    qat.fake_quant(ours, enabled=False)
    found = {}
    for key, mode in (("eval", False), ("train", True), ("again", False), ("again", True)):
        pairs = zip(outputs(ours.train(mode), x), outputs(theirs.train(mode), x), strict=True)
        worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs)
        found[key] = max(found.get(key, 0.0), worst)
    return found


def bad_gradients(prepared: nn.Module, x: Tensor) -> list[str]:
    """Trainable tensors without a finite gradient after one step's backward pass."""
    prepared.train().zero_grad()
    total = torch.zeros(())
    for y in pytree.tree_leaves(prepared(x)):
        if isinstance(y, Tensor) and y.ndim == 2:
            total = total + F.cross_entropy(y, torch.arange(len(x)) % y.shape[1])
    total.backward()
    return [n for n, p in prepared.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]


def prove_named(name: str, size: int | None) -> dict[str, Any]:
    """All figures of one model of the zoo, with random weights and images."""
    torch.manual_seed(0)
    model, size = load(name, size)
    return {"model": name, "size": size, **prove(randomize(model), torch.randn(EXAMPLES, 3, size, size))}


def prove(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """All figures of one model."""
    row: dict[str, Any] = {}

    def timed(key: str, function: Any) -> Any:
        start = time.perf_counter()
        value = function()
        row[key] = time.perf_counter() - start
        return value

    prepared = timed("prepare_s", lambda: qat.prepare(model.eval(), x[:2]))
    found = quantizers(prepared)
    row |= {"quantizers": len(found), "int8_macs": prepared.plan.int8_mac_share}
    row["float_ops"] = dict(sorted(_counted(op.kind.split()[0] for op in prepared.plan.in_float).items()))
    row["off"] = off_difference(prepared, model, x)
    without = [n for n, p in model.named_parameters() if p.requires_grad and not _reached(model, n, x)]
    twin = copy.deepcopy(prepared)  # not calibrated: ranges start with its batch, far from the running statistics
    row["bad_gradients"] = [n for n in bad_gradients(twin, x) if n not in without]
    qat.calibrate(prepared.eval(), [x])
    with TemporaryDirectory() as folder:
        integer = timed("convert_s", lambda: qat.convert(prepared))
        artifact = timed("export_s", lambda: qat.export(integer, Path(folder) / "int8.onnx"))
        tensors = {id(t): t.nbytes for t in [*model.parameters(), *model.buffers()]}
        row["file_ratio"] = artifact.size_bytes / sum(tensors.values())
        report = qat.verify(prepared, artifact, [x], strict=False)
    for key, stage in (("torch", report.stages[-3]), ("off_ort", report.stages[-2]), ("ort", report.stages[-1])):
        row[key] = {"agreement": stage.agreement, "max": stage.max_steps, "mean": stage.mean_steps}
    row["floor"] = noise_floor(prepared, x, report.step or 1.0)
    return row


@torch.no_grad()
def noise_floor(prepared: nn.Module, x: Tensor, step: float) -> float:
    """Mean difference, in steps, of the fake-quant model to itself when its input moves by float32's rounding."""
    generator = torch.Generator().manual_seed(1)
    moved = x * (1 + NOISE * torch.randn(x.shape, generator=generator))
    pairs = zip(outputs(prepared.eval(), x), outputs(prepared, moved), strict=True)
    return max(float((a - b).abs().mean()) for a, b in pairs) / step


_REACHED: dict[int, set[str]] = {}


def _reached(model: nn.Module, name: str, x: Tensor) -> bool:
    """Whether the float model's own loss reaches a parameter at all."""
    if id(model) not in _REACHED:
        twin = copy.deepcopy(model).train()
        sum(first.sum() for first in pytree.tree_leaves(twin(x)) if isinstance(first, Tensor)).backward()
        _REACHED[id(model)] = {n for n, p in twin.named_parameters() if p.grad is not None}
    return name in _REACHED[id(model)]


def _counted(kinds: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def passed(row: dict[str, Any]) -> bool:
    """Same as float when off, finite gradients, and an artefact that computes what fake-quant does."""
    if "error" in row:
        return False
    same = all(v <= SAME for v in row["off"].values())
    bound = max(MEAN, FLOOR * row.get("floor", 0.0))
    return same and not row["bad_gradients"] and all(row[k]["mean"] <= bound for k in ("torch", "off_ort", "ort"))


def in_own_process(name: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--threads", str(args.threads)]
    command += ["--size", str(args.size)] if args.size else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return {"model": name, "error": f"not done in {args.limit} s"}
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"model": name, "error": f"exit {done.returncode}: {last}"[:200]}


HEAD = (
    "model", "px", "prepare, s", "quantizers", "int8 MACs, %", "off: eval", "train", "again", "gradients",
    "convert + export, s", "agreement, % (off)", "max steps (off)", "agreement, %", "max steps", "mean steps",
    "file ratio",
)  # fmt: skip


def cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["model"], row["error"].splitlines()[0], *[""] * (len(HEAD) - 2)]
    off, ort = row["off_ort"], row["ort"]
    return [
        row["model"], str(row["size"]), f"{row['prepare_s']:.1f}", str(row["quantizers"]),
        f"{100 * row['int8_macs']:.1f}",
        *(f"{row['off'][k]:.0e}" if row["off"][k] else "0" for k in ("eval", "train", "again")),
        "finite" if not row["bad_gradients"] else f"{len(row['bad_gradients'])} not",
        f"{row['convert_s'] + row['export_s']:.1f}", f"{off['agreement']:.1f}", f"{off['max']:.1f}",
        f"{ort['agreement']:.1f}", f"{ort['max']:.1f}", f"{ort['mean']:.2f}", f"{row['file_ratio']:.3f}",
    ]  # fmt: skip


def markdown(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    cpu, versions = machine.cpu(), machine.versions()
    lines = [
        "# The zoo",
        "",
        f"{sum(map(passed, rows))} of {len(rows)} models pass. `benchmarks/zoo.py`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{cpu['name']} ({', '.join(cpu['isa'])}), {args.threads} thread(s), "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + ".",
        "",
        "Recipe w8a8 for onnxruntime; weights and images are random (see the script). *off*: prepared with fake-quant "
        "off against float, largest difference relative to the largest output, in evaluation, in training, and after "
        "switching back and forth. *(off)*: onnxruntime without graph optimizations, then its default. Steps are those "
        "of the output's integers, against fake-quant. *file ratio*: int8 file to float parameters. With random "
        f"weights classes tie, so agreement over {EXAMPLES} images is no accuracy.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", help="torchvision/NAME or timm/NAME; all by default")
    parser.add_argument("--size", type=int, help="pixels, for all; by default small, where the model takes that")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=600, help="seconds for a model")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument(
        "--json", type=Path, help="append figures here, one model a line, and do not repeat those in it"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.one:
        warnings.simplefilter("ignore")
        try:
            row = prove_named(args.one, args.size)
        except (QatError, RuntimeError, TypeError, ValueError, AttributeError, KeyError, AssertionError) as error:
            row = {"model": args.one, "error": f"{type(error).__name__}: {error}"[:600]}
        print(json.dumps(row))
        return 0
    console, rows = Console(soft_wrap=True), []
    done = {}
    if args.json and args.json.exists():
        done = {row["model"]: row for row in map(json.loads, args.json.read_text().splitlines())}
    for name in args.models or names():
        row = done.get(name) or in_own_process(name, args)
        rows.append(row)
        if args.json and name not in done:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
        console.print(("ok    " if passed(row) else "FAIL  ") + " | ".join(cells(row)), highlight=False)
        if args.markdown:
            args.markdown.write_text(markdown(rows, args))
    return 0 if all(map(passed, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
