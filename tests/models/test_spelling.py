from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision as tv
from torch import nn
from torch.ao.quantization import disable_fake_quant, disable_observer, get_default_qat_qconfig, prepare_qat
from torchvision.models import quantization as quantizable

import qat
from qat.models import build, load_float
from qat.models.spelling import Spelling, is_quantizer

# what users of torchvision.models.quantization have on disk is written by what torch 2.15 announces to remove
ANNOUNCED = pytest.mark.filterwarnings(
    "ignore:torch.ao.quantization is deprecated", "ignore:.*reduce_range will be deprecated", "ignore:must run observer"
)
CASES = [
    ("resnet18", {}),
    ("mobilenet_v2", {"width_mult": 0.25}),
    ("mobilenet_v3_large", {}),
    ("shufflenet_v2_x0_5", {}),
    ("googlenet", {"init_weights": False, "aux_logits": True}),
]
IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def quantizable_model(name: str, options: dict[str, Any], *, form: str) -> nn.Module:
    model = getattr(quantizable, name)(quantize=False, num_classes=5, **options)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 2.0)
    model.train()
    if form != "float":
        model.fuse_model(is_qat=True)
    if form == "qat":
        model.qconfig = get_default_qat_qconfig("fbgemm")
        prepare_qat(model, inplace=True)
        model.apply(disable_observer)
        model.apply(disable_fake_quant)
    return model


INCEPTION = ("inception_v3", {"init_weights": False, "aux_logits": True})


@ANNOUNCED
@pytest.mark.parametrize(("name", "options"), [*CASES, pytest.param(*INCEPTION, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", ["float", "fused", "qat"])
def test_checkpoint_of_a_quantizable_model(tmp_path: Path, name: str, options: dict[str, Any], form: str) -> None:
    """Loaded into the plain model, it computes what the quantizable one does without its fake-quant."""
    theirs = quantizable_model(name, options, form=form)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = build(name, 5, **options)
    report = load_float(ours, tmp_path / "x.pth")
    assert report.matched == report.total
    assert bool(report.quantizers) == (form == "qat")
    assert (f"{len(report.quantizers)} of quantizers left out" in str(report)) == (form == "qat")
    images = IMAGES if name != INCEPTION[0] else nn.functional.interpolate(IMAGES, 96)  # it takes no less than 75
    with torch.no_grad():
        # one BatchNorm in the other order of operations: a scaled weight in theirs
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-3, atol=1e-4)


def test_old_densenet_names(tmp_path: Path) -> None:
    small = {"growth_rate": 4, "block_config": (2, 2), "num_init_features": 8, "num_classes": 5}
    old, new = tv.models.DenseNet(**small), tv.models.DenseNet(**small)
    state = {}
    for key, value in old.state_dict().items():
        for part in ("norm", "relu", "conv"):
            for number in "12":
                key = key.replace(f".{part}{number}.", f".{part}.{number}.")
        state[key] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "densenet.pth")
    load_float(new, tmp_path / "densenet.pth")
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())


def test_names_that_the_model_has_are_never_read_otherwise() -> None:
    wanted = ("conv.weight", "conv.bn.weight", "norm.weight", "norm.running_mean", "weight_fake_quant.scale")
    spelling = Spelling(wanted, wanted)
    assert [spelling.read(name) for name in wanted] == list(wanted)


@pytest.mark.parametrize("name", ["fc.0.weight", "conv.1.weight", "linear.bn.weight", "bn.weight", "scale"])
def test_other_names_stay_as_they_are(name: str) -> None:
    wanted = ("conv.weight", "norm.weight", "norm.running_mean", "fc.weight", "linear.weight")
    assert Spelling({name}, wanted).read(name) == name


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "swin_t"])
def test_what_preparing_adds_are_quantizers(name: str) -> None:
    model = build(name, 5)
    before, after = set(model.state_dict()), set(qat.prepare(model, IMAGES).state_dict())
    assert before <= after
    assert {key for key in after if is_quantizer(key)} == after - before


def test_torchvision_still_ships_what_this_reads() -> None:
    assert {name for name, _ in CASES} <= set(tv.models.list_models()) & set(dir(quantizable))
