"""Layers that lie directly on the LightningModule: its own forward is the network."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import qat
from qat.errors import ConfigError
from qat.placement.held import own_network
from qat.training.oscillation import OscillationControl
from qat.training.reseed import SeedEveryEpoch

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]


class Layers(pl.LightningModule):
    """A convolution, BatchNorm, a block and a linear layer in forward; functional dropout tells the modes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(4, 4)
        self.gain = nn.Parameter(torch.ones(()))
        self.accuracy = MulticlassAccuracy(4)
        self.rate = 0.3
        self.opened = open(__file__)  # noqa: PTH123, SIM115  (what no copy can be made of)

    def features(self, x: Tensor) -> Tensor:
        return self.block(F.relu(self.norm(self.conv(x)))).mean((2, 3)) * self.gain

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.dropout(self.features(x), self.rate, self.training))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("top1", self.accuracy)
        self.log("val_loss", F.cross_entropy(logits, batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Light(Layers):
    """Without what neither copies nor pickles."""

    def __init__(self) -> None:
        super().__init__()
        self.opened.close()
        del self.opened


@pytest.fixture
def layers() -> Any:
    module = Layers()
    yield module
    module.opened.close()


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.runtime
@pytest.mark.parametrize("placement", ["graph", "modules"])
def test_trains_and_delivers(trainer: Trainers, layers: Layers, loader: Loader, tmp_path: Path, placement: str) -> None:
    names, accuracy = set(layers.state_dict()), layers.accuracy
    before = layers.fc.weight.detach().clone()
    callback = qat.QuantizationAwareTraining(export=tmp_path / "model.onnx", placement=placement)
    trainer(callback, max_epochs=2).fit(layers, loader, loader)
    assert list(callback.prepared(layers)) == ["forward"]
    assert callback.report is not None
    assert callback.report.passed
    assert names < set(layers.state_dict())  # the float names, and ranges beside them
    assert not torch.equal(layers.fc.weight, before)
    assert layers.accuracy is accuracy
    assert layers.conv is callback.prepared(layers)["forward"].conv


def test_equals_the_same_network_as_an_attribute(trainer: Trainers, loader: Loader) -> None:
    """Weights and ranges after two epochs, to the last bit."""

    class Network(nn.Module):
        features, forward, rate = Layers.features, Layers.forward, 0.3

        def __init__(self, like: Light) -> None:
            super().__init__()
            self.conv, self.norm, self.block, self.fc = (
                copy.deepcopy(m) for m in (like.conv, like.norm, like.block, like.fc)
            )
            self.gain = nn.Parameter(like.gain.detach().clone())

    class Holder(Light):
        def __init__(self, like: Light) -> None:
            pl.LightningModule.__init__(self)
            self.model = Network(like)
            self.accuracy = MulticlassAccuracy(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    own, callback = Light(), qat.QuantizationAwareTraining()
    holder = Holder(own)
    for module in (own, holder):
        trainer(callback, SeedEveryEpoch(1), max_epochs=2).fit(module, loader, loader)
    ours, theirs = own_network(own), holder.model
    assert ours is not None
    assert equal(ours.state_dict(), theirs.state_dict())
    images = next(iter(loader))[0]
    torch.testing.assert_close(own.eval()(images), holder.eval()(images), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")  # it goes on there
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used:UserWarning")
def test_resumes(trainer: Trainers, loader: Loader, tmp_path: Path) -> None:
    def run(module: Layers, name: str, ckpt: Path | None = None) -> dict[str, Tensor]:
        kept = ModelCheckpoint(tmp_path, name + "{epoch}", save_top_k=-1)
        quiet = trainer(
            qat.QuantizationAwareTraining(), SeedEveryEpoch(1), kept, max_epochs=3, enable_checkpointing=True
        )
        quiet.fit(module, loader, loader, ckpt_path=ckpt)
        return module.state_dict()

    whole, path = run(Light(), "whole"), tmp_path / "wholeepoch=1.ckpt"
    assert equal(whole, run(Light(), "resumed", path))
    floats = Light.load_from_checkpoint(path)
    assert floats.state_dict().keys() == Light().state_dict().keys()
    fresh = Light()
    trainer(qat.QuantizationAwareTraining()).test(fresh, loader, ckpt_path=path, verbose=False)
    assert own_network(fresh) is not None
    assert fresh.state_dict().keys() == whole.keys()


def test_oscillation_is_seen_in_its_weights(trainer: Trainers, loader: Loader) -> None:
    control, seen = OscillationControl(damp=1e-2), set[str]()

    class Look(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.update(control._weights)

    trainer(qat.QuantizationAwareTraining(recipe="w4a8"), control, Look()).fit(Light(), loader, loader)
    assert seen == {"forward.conv", "forward.block.0", "forward.fc"}


def test_the_network_follows_the_modules_mode(trainer: Trainers, loader: Loader) -> None:
    module, images = Light(), next(iter(loader))[0]
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    module.eval()
    torch.testing.assert_close(module(images), module(images), rtol=0, atol=0)
    module.train()
    assert not torch.equal(module(images), module(images))  # dropout


def test_copies_and_pickles(trainer: Trainers, loader: Loader) -> None:
    module, images = Light(), next(iter(loader))[0]
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    expected = module.eval()(images)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(images), expected, rtol=0, atol=0)
        with torch.no_grad():
            other.fc.weight.zero_()
        assert not torch.equal(other(images), expected)  # its network has its own layers
        torch.testing.assert_close(module(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "inputs"),
    [
        pytest.param(lambda m, x: m.forward(x), 1, id="forward itself"),
        pytest.param(lambda m, x: m(x, torch.ones(len(x), 4)), 2, id="several inputs"),
        pytest.param(lambda m, x: m(x=x, scale=torch.ones(len(x), 4)), 2, id="by keyword"),
    ],
)
def test_how_the_step_calls_it(trainer: Trainers, loader: Loader, call: Any, inputs: int) -> None:
    class Calls(Light):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            x = self.features(x)
            return self.fc(x if scale is None else x * scale)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(call(self, batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.training_step(batch, batch_idx))

    module, callback = Calls(), qat.QuantizationAwareTraining()
    trainer(callback).fit(module, loader, loader)
    assert len(callback.prepared(module)["forward"].example_inputs) == inputs


def test_named_over_several_networks(trainer: Trainers, tiny_net: type, loader: Loader) -> None:
    class Two(Light):
        def __init__(self) -> None:
            pl.LightningModule.__init__(self)
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Sequential(nn.Linear(4, 4))
            self.accuracy = MulticlassAccuracy(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    with pytest.raises(ConfigError, match=r"several networks: 'body', 'head'.*or modules='forward' for what its own"):
        trainer(qat.QuantizationAwareTraining()).fit(Two(), loader, loader)
    module, callback = Two(), qat.QuantizationAwareTraining(modules="forward")
    trainer(callback).fit(module, loader, loader)
    assert {"body.0.weight_quantizer", "head.0.weight_quantizer"} < set(qat.quantizers(module))


def test_a_step_that_goes_past_forward(trainer: Trainers, loader: Loader) -> None:
    class Past(Light):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.fc(self.features(batch[0])), batch[1])

    module = Past()
    with pytest.raises(ConfigError, match=r"Past\.training_step never called self\(x\), whose forward is the network"):
        trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    assert "forward" not in vars(module)
