"""ResNet-20, trained until it is sure of its classes, in every runtime: the same class for 99.5 % of the images."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qat
from qat import machine
from qat.models import resnet20
from qat.runtime import EXTRAS, load

pytestmark = [
    pytest.mark.runtime,
    # executorch and torchao, their own imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
CLASSES, PIXELS = 3, 16


def batch(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise with one of three colors, and which."""
    y = torch.arange(count) % CLASSES
    noise = torch.randn(count, 3, PIXELS, PIXELS, generator=generator)
    return noise + 2 * F.one_hot(y, CLASSES).view(count, CLASSES, 1, 1), y


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """The model and 600 images that it has not seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = resnet20(num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        x, y = batch(36, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), [batch(120, generator) for _ in range(5)]


@pytest.mark.parametrize(
    "name",
    [
        *("onnxruntime", "onnxruntime_vnni", "openvino", "executorch", "tensorrt", "torch"),
        pytest.param("inductor", marks=pytest.mark.slow),  # a minute of C++
    ],
)
def test_the_same_class_for_995_of_1000_images(trained, name, tmp_path):
    model, data = trained
    target = qat.Target.parse(name)
    if target.runtime in EXTRAS:
        pytest.importorskip(EXTRAS[target.runtime], reason=f"the extra `{target.runtime}` is not installed")
    if target.runtime == "onnxruntime" and target.weight_bits > 7 and machine.saturation(name, machine.cpu()):
        pytest.skip("this CPU has no VNNI: sums of two 8-bit products saturate in onnxruntime")
    prepared = qat.prepare(model, data[0][0][:2], target=target)
    qat.calibrate(prepared, data)
    artifact = qat.export(qat.convert(prepared.eval()), tmp_path / f"resnet20{target.artifact}")
    report = qat.verify(prepared, artifact, data, tolerance=qat.Tolerance(agreement=99.5))
    deployed = report.stages[-1]
    assert report.examples == 600
    assert deployed.top1 is not None
    assert deployed.top1 > 90
    assert deployed.agreement >= 99.5
    assert deployed.mean_steps < 0.5
    if name in ("onnxruntime", "openvino", "executorch"):
        assert load(artifact).coverage().in_float == ()
