"""Families, small: with fake-quant off they are the float model, every weight learns, the artefact is the model.

The models themselves, at their own widths, are `pytest -m slow`, and docs/zoo.md.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import (
    GoogLeNet,
    convnext,
    densenet,
    efficientnet,
    maxvit,
    mnasnet,
    mobilenetv3,
    regnet,
    shufflenetv2,
    swin_transformer,
)
from torchvision.models.vision_transformer import VisionTransformer

import qat
from qat.runtime import load
from qat.verify import output_step

FLIPS = 4.0  # steps of the output: a value at a tie rounds the other way, and random weights pass that on
MEAN = 1.0  # steps, of all logits


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "zoo.py"
    sys.path.insert(0, str(path.parent))  # its table has a file of its own
    spec = importlib.util.spec_from_file_location("zoo_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def swin(version: int) -> nn.Module:
    blocks = (swin_transformer.SwinTransformerBlock, swin_transformer.SwinTransformerBlockV2)
    merging = (swin_transformer.PatchMerging, swin_transformer.PatchMergingV2)
    return swin_transformer.SwinTransformer(
        patch_size=[2, 2], embed_dim=8, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4], num_classes=10,
        stochastic_depth_prob=0.2, block=blocks[version - 1], downsample_layer=merging[version - 1],
    )  # fmt: skip


def mobilenet() -> nn.Module:
    config = partial(mobilenetv3.InvertedResidualConfig, dilation=1, width_mult=1.0)
    settings = [
        config(8, 3, 16, 8, True, "RE", stride=2),
        config(8, 3, 16, 8, True, "HS", stride=1),
    ]
    return mobilenetv3.MobileNetV3(settings, last_channel=32, num_classes=10)


def efficient() -> nn.Module:
    settings = [efficientnet.MBConvConfig(4, 3, 1, 8, 8, 2), efficientnet.FusedMBConvConfig(2, 3, 2, 8, 16, 2)]
    return efficientnet.EfficientNet(settings, dropout=0.2, stochastic_depth_prob=0.2, num_classes=10)


def convnext_tiny() -> nn.Module:
    blocks = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(blocks, stochastic_depth_prob=0.2, num_classes=10)


def regnet_tiny() -> nn.Module:
    params = regnet.BlockParams(
        depths=[1, 1],
        widths=[8, 16],
        group_widths=[4, 8],
        bottleneck_multipliers=[1.0, 1.0],
        strides=[2, 2],
        se_ratio=0.25,
    )
    return regnet.RegNet(params, num_classes=10, stem_width=8)


def maxvit_tiny() -> nn.Module:
    return maxvit.MaxVit(
        input_size=(32, 32), stem_channels=8, partition_size=4, block_channels=[8, 16], block_layers=[1, 1], head_dim=8,
        stochastic_depth_prob=0.2, num_classes=10,
    )  # fmt: skip


FAMILIES: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "vit": (
        lambda: VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10),
        {"layernorm": 3, "softmax": 1, "gelu": 1},
    ),
    "swin": (lambda: swin(1), {"softmax": 3, "gelu": 3}),
    "swin_v2": (lambda: swin(2), {"softmax": 3, "gelu": 3}),
    "densenet": (lambda: densenet.DenseNet(4, (2, 2), 8, num_classes=10), {}),
    "shufflenet": (lambda: shufflenetv2.ShuffleNetV2([2, 2, 2], [8, 8, 16, 16, 16], num_classes=10), {}),
    "mobilenet_v3": (mobilenet, {}),
    "efficientnet": (efficient, {}),
    "convnext": (convnext_tiny, {"gelu": 2}),
    "regnet": (regnet_tiny, {}),
    "mnasnet": (lambda: mnasnet.MNASNet(0.1, 10), {}),
    "maxvit": (maxvit_tiny, {"softmax": 4}),
    "googlenet": (lambda: GoogLeNet(10, init_weights=False), {}),
}


@pytest.mark.runtime
@pytest.mark.parametrize("family", FAMILIES)
def test_family(zoo, family):
    build, in_float = FAMILIES[family]
    row = zoo.prove(zoo.randomize(build()), torch.randn(zoo.EXAMPLES, 3, 32, 32))
    # vit: torch's attention is closed; the gates: torch multiplies x * sigmoid(x) in its own order
    exact = family not in ("vit", "mobilenet_v3", "efficientnet")
    assert row["off"] == {"eval": 0.0, "train": 0.0, "again": 0.0} or not exact
    assert max(row["off"].values()) <= zoo.zoo_table.SAME
    assert row["bad_gradients"] == []
    assert row["int8_macs"] == 1.0
    assert {kind: row["float_ops"].get(kind) for kind in in_float} == in_float
    assert in_float or row["float_ops"] == {}
    for stage in ("torch", "off_ort", "ort"):
        assert row[stage]["max"] <= FLIPS, stage
        assert row[stage]["mean"] <= MEAN, stage


@pytest.mark.slow
@pytest.mark.runtime
# executorch 1.5 and openvino, their own imports
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("target", "suffix"), [("executorch", ".pte"), ("openvino", ".xml")])
def test_family_in_another_runtime(zoo, target, suffix, family, tmp_path):
    pytest.importorskip(target, reason="an extra")
    model, x = zoo.randomize(FAMILIES[family][0]()).eval(), torch.randn(zoo.EXAMPLES, 3, 32, 32)
    prepared = qat.prepare(model, x[:2], target=target)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared.eval())
    run, step = load(qat.export(integer, tmp_path / f"model{suffix}")), output_step(integer)
    for batch in (1, 7, zoo.EXAMPLES):
        with torch.no_grad():
            steps = (run(x[:batch]) - prepared(x[:batch])).abs() / step
        assert steps.max() <= FLIPS
        assert steps.mean() <= MEAN


@pytest.mark.runtime
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_timm_family(zoo, name):
    timm = pytest.importorskip("timm", reason="an extra")
    model = timm.create_model(name, pretrained=False, num_classes=10)
    row = zoo.prove(zoo.randomize(model), torch.randn(zoo.EXAMPLES, 3, 160, 160))
    assert max(row["off"].values()) <= zoo.zoo_table.SAME
    assert row["bad_gradients"] == []
    assert row["int8_macs"] == 1.0
    assert not {"batch_norm", "batchnorm2d", "identity"} & set(row["float_ops"])
    assert max(row["off_ort"]["max"], row["ort"]["max"]) <= FLIPS


def test_a_tenth_of_timms_names_may_fail_and_none_of_torchvisions(zoo):
    timm = [f"timm/{name}" for name in zoo.TIMM.split()]
    explained = set(zoo.zoo_table.EXPLAINED)
    assert len(timm) == 60
    assert explained <= set(timm)
    assert len(explained) <= 0.1 * len(timm)


def figures(**changes: Any) -> dict[str, Any]:
    stage = {"agreement": 50.0, "max": 9.0, "mean": 0.5}
    off = {"eval": 0.0, "train": 0.0, "again": 0.0}
    row = {"model": "timm/vgg11", "size": 64, "off": off, "bad_gradients": [], "torch": stage, "off_ort": stage}
    times = dict.fromkeys(("prepare_s", "convert_s", "export_s"), 1.0)
    return row | times | {"ort": stage, "quantizers": 3, "int8_macs": 1.0, "file_ratio": 0.25, "floor": 0.1} | changes


def test_a_verdict_is_of_gradients_differences_and_steps_above_the_noise(zoo):
    table = zoo.zoo_table
    far = {"agreement": 100.0, "max": 9.0, "mean": 3.0}
    assert table.verdict(figures()) == "ok"
    assert table.verdict(figures(bad_gradients=["fc.weight"])) == "FAIL"
    assert table.verdict(figures(off={"eval": 0.0, "train": 1e-3, "again": 0.0})) == "FAIL"
    rough = {"eval": 0.0, "train": 3e-5, "again": 0.0}  # BatchNorm over few pictures, behind many layers
    assert table.verdict(figures(off=rough, off_floor={"eval": 1.0, "train": 1e-5, "again": 1.0})) == "FAIL"
    assert table.verdict(figures(off=rough, off_floor={"eval": 0.0, "train": 2e-5, "again": 0.0})) == "ok"
    assert table.verdict(figures(ort=far)) == "FAIL"
    assert table.verdict(figures(ort=far, floor=1.6)) == "ok"  # the net itself moves by as much
    assert table.verdict({"model": "timm/vgg11", "error": "not done in 1 s"}) == "FAIL"
    known = next(iter(table.EXPLAINED))
    assert table.verdict(figures(model=known, ort=far)) == "known"
    assert table.accepted([figures(), figures(model=known, ort=far)])
    assert not table.accepted([figures(ort=far)])


def test_the_page_says_why_a_model_fails_and_a_record_keeps_the_latest_figures(zoo, tmp_path):
    table = zoo.zoo_table
    known = next(iter(table.EXPLAINED))
    rows = [figures(), figures(size=224, prepare_cpu_s=0.25), figures(model=known, bad_gradients=["a", "b"])]
    text = table.markdown(rows, examples=8, fewer={"timm/dla34": 2}, missing=["timm/dla34"])
    assert "1 of 2 models pass" in text
    assert "agreement over 8 images, 2 of `timm/dla34`,\nis no accuracy" in text
    assert "Not run yet: `timm/dla34`" in text
    assert f"`{known}`: {table.EXPLAINED[known]}" in text
    assert "| timm/vgg11 | 224 | 1.0 | 0.2 |" in text
    table.write(tmp_path / "record.jsonl", [*rows, figures(quantizers=4)])
    kept = table.read(tmp_path / "record.jsonl")
    assert kept[("timm/vgg11", 64)]["quantizers"] == 4
    assert len(kept) == 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_whole_zoo(zoo, part):
    pytest.importorskip("timm", reason="an extra")
    command = [sys.executable, zoo.__file__, "--models", *zoo.names()[part::10], "--limit", "900"]
    done = subprocess.run(command, capture_output=True, text=True)  # one that forks has no threads of other tests
    assert done.returncode == 0, done.stdout + done.stderr
