"""Helpers of post-training quantization from the config: what each changes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

import qat
from qat.errors import ConfigError
from qat.models import resnet20
from qat.pipeline import run
from qat.pipeline.helpers import Helpers, Rounding, first, read_helpers

CONF = Path(__file__).parent.parent.parent / "conf"


def config(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["model=resnet20", "run_dir=/nowhere", *overrides])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.relu(self.norm(self.one(x)))).mean((2, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 8, 8, generator=generator), torch.zeros(8)) for _ in range(3)]


def prepared(helpers: Helpers) -> tuple[nn.Module, qat.PreparedModel]:
    torch.manual_seed(0)
    net = Net().eval()
    model = helpers.before(net, batches()[0][0])
    result = qat.prepare(model, batches()[0][0], recipe="w4a8")
    qat.calibrate(result, batches())
    helpers.calibrated(result, batches(), 3)
    return net, result


def error(helpers: Helpers) -> float:
    net, model = prepared(helpers)
    x = torch.cat([images for images, _ in batches()])
    with torch.no_grad():
        return float((model.eval()(x) - net(x)).square().mean())


def test_each_comes_nearer_to_the_float_model_on_the_images_it_saw() -> None:
    plain = error(Helpers())
    assert error(Helpers(correct_biases=True)) < plain
    assert error(Helpers(rounding=Rounding(images=24, iterations=200))) < plain


def test_equalizing_leaves_what_the_model_computes() -> None:
    net, model = prepared(Helpers(equalize=True))
    qat.fake_quant(model, enabled=False)
    assert not torch.equal(model.two.weight, net.two.weight)
    torch.testing.assert_close(model.eval()(batches()[0][0]), net(batches()[0][0]), rtol=1e-4, atol=1e-5)


def test_zeros_are_kept_behind_equalization() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.two.weight[:, ::2] = 0.0
    model = Helpers(equalize=True, keep_zeros=True).before(net, batches()[0][0])
    prepared = qat.prepare(model, batches()[0][0])
    assert torch.equal(prepared.two.weight_mask, (net.two.weight != 0).float())


def test_images_are_counted_whole_batches_are_not() -> None:
    assert [len(x) for x, _ in first(batches(), 11)] == [8, 3]
    assert [len(x) for x, _ in first(batches(), 16)] == [8, 8]
    assert [len(x) for x, _ in first(batches(), 100)] == [8, 8, 8]


def test_read_from_the_config() -> None:
    assert read_helpers(config()) == Helpers()
    cfg = config(
        "qat.equalize=true",
        "qat.keep_zeros=true",
        "qat.adaround={images: 10}",
        "qat.correct_biases=true",
    )
    assert read_helpers(cfg) == Helpers(
        equalize=True, keep_zeros=True, rounding=Rounding(images=10), correct_biases=True
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["qat.adaround=true"], r"qat.adaround needs a mapping such as .*, got True"),
        (["qat.adaround={image: 3}"], r"unknown key of qat.adaround 'image'. Did you mean images"),
        (
            ["qat.adaround={}", "quant=w4a4_dorefa"],
            r"recipe w4a4_dorefa rounds a tanh of its weights, and qat.adaround",
        ),
        (["qat.adaround={images: 0}"], r"need qat.adaround.images >= 1, a whole number, got 0"),
        (["qat.keep_zeros=yes please"], r"need qat.keep_zeros=true or false, got 'yes please'"),
        (["qat.equalize=2"], r"need qat.equalize=true or false, got 2"),
        (
            ["qat.adaround={}", "placement=modules"],
            r"qat.adaround: these go along the graph .*placement=modules has none",
        ),
        (
            ["qat.equalize=true", "qat.correct_biases=true", "placement=modules"],
            r"qat.equalize and qat.correct_biases: these go along the graph",
        ),
    ],
)
def test_what_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_helpers(config(*overrides))


@pytest.mark.runtime
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_a_run_with_a_teacher_and_helpers_delivers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    torch.save(resnet20().state_dict(), tmp_path / "float.pt")
    cfg = config(
        f"run_dir={tmp_path}/run", f"init_from={tmp_path}/float.pt", "quant=w4a8", "qat.epochs=1",
        "qat.calibration_batches=1", "qat.distill={weight: 1.0}", "qat.adaround={images: 8, iterations: 2}",
        "qat.correct_biases=true", "qat.reestimate_bn=2", "trainer.limit_train_batches=2",
        "trainer.log_every_n_steps=1", "latency.repeats=1",
        "report=false", "trainer.enable_progress_bar=false", "verify.agreement=0", "verify.top1=100",
    )  # fmt: skip
    with caplog.at_level("INFO", "qat"):
        results = run(cfg)
    assert "of the weights round the other way, mean of 20 layers" in caplog.text
    assert "BatchNorm statistics from 2 batches" in caplog.text
    assert results["recipe"] == "w4a8"
    assert (tmp_path / "run" / "int8.onnx").is_file()
    assert "last.ckpt has these statistics" in caplog.text
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in saved)
