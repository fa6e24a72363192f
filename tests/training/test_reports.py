"""What was reported of Lightning's old QuantizationAwareTraining, until it was removed: each number is one of theirs.

github.com/Lightning-AI/pytorch-lightning/issues/NUMBER
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, ModelPruning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.data import DataLoader

import qat
from qat.errors import ConfigError
from qat.placement import PreparedModel

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def tested(stranger: type) -> type:
    class Tested(stranger):  # type: ignore[misc,valid-type]
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0])

    return Tested


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize("weights_only", [False, True])
def test_6457_a_checkpoint_loads(
    trainer: Trainers, tested: type, loader: Loader, tmp_path: Path, weights_only: bool
) -> None:
    """Strictly into the float module, and into a fresh one that the callback prepares on the way."""
    fitted, module, path = trainer(qat.QuantizationAwareTraining()), tested(), tmp_path / "last.ckpt"
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(path, weights_only=weights_only)

    floats = tested.load_from_checkpoint(path)
    assert equal(floats.state_dict(), {k: v for k, v in module.state_dict().items() if k in tested().state_dict()})

    fresh = tested()
    (results,) = trainer(qat.QuantizationAwareTraining()).test(fresh, loader, ckpt_path=path, verbose=False)
    assert results == fitted.test(module, loader, verbose=False)[0]
    assert equal(state_of(fresh), state_of(module))
    assert vars(fresh).keys() - vars(tested()).keys() <= {"_hparams", "on_save_checkpoint", "on_load_checkpoint"}

    (alone,) = trainer().test(module, loader, ckpt_path=path, verbose=False)  # where no callback is
    assert alone == results


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_6457_into_every_stage(trainer: Trainers, tested: type, loader: Loader, tmp_path: Path) -> None:
    class Predicts(tested):  # type: ignore[misc,valid-type]
        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0])

    fitted, module, path = trainer(qat.QuantizationAwareTraining()), Predicts(), tmp_path / "last.ckpt"
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(path)
    expected = state_of(module)

    def fresh() -> tuple[pl.Trainer, pl.LightningModule]:
        return trainer(qat.QuantizationAwareTraining(), max_epochs=2), Predicts()

    quiet, other = fresh()
    assert quiet.validate(other, [loader], ckpt_path=path, verbose=False)
    assert equal(state_of(other), expected)
    quiet, other = fresh()
    assert len(quiet.predict(other, loader, ckpt_path=path) or ()) == len(loader)
    assert equal(state_of(other), expected)
    quiet, other = fresh()
    quiet.fit(other, loader, loader, ckpt_path=path)
    assert isinstance(other.model, PreparedModel)
    assert not equal(state_of(other), expected)


def test_6457_what_the_project_prepares_itself_stays_in_its_state(
    trainer: Trainers, tested: type, tiny_net: type, loader: Loader, tmp_path: Path
) -> None:
    class Prepared(tested):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__(network=qat.prepare(tiny_net(), torch.randn(2, 3, 8, 8)))

    fitted, module = trainer(qat.QuantizationAwareTraining()), Prepared()
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(tmp_path / "last.ckpt")
    assert equal(Prepared.load_from_checkpoint(tmp_path / "last.ckpt").state_dict(), module.state_dict())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")
def test_6457_with_the_ranges_in_its_state(trainer: Trainers, tested: type, loader: Loader, tmp_path: Path) -> None:
    """As formats 1 and 2 had them."""
    fitted, module, path = trainer(qat.QuantizationAwareTraining()), tested(), tmp_path / "last.ckpt"
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    content["state_dict"] |= content["qat"].pop("ranges")
    content["qat"]["format"] = 2
    torch.save(content, path)
    fresh = tested()
    trainer(qat.QuantizationAwareTraining()).test(fresh, loader, ckpt_path=path, verbose=False)
    assert equal(state_of(fresh), state_of(module))


def test_6457_a_float_checkpoint_leaves_the_module_float(
    trainer: Trainers, tested: type, loader: Loader, tmp_path: Path
) -> None:
    fitted, path = trainer(), tmp_path / "float.ckpt"
    fitted.fit(tested(), loader, loader)
    fitted.save_checkpoint(path)
    fresh = tested()
    trainer(qat.QuantizationAwareTraining()).test(fresh, loader, ckpt_path=path, verbose=False)
    assert not isinstance(fresh.model, PreparedModel)


def test_6457_a_stage_that_does_not_tell(trainer: Trainers, tested: type, loader: Loader, tmp_path: Path) -> None:
    class Odd(tested):  # type: ignore[misc,valid-type]
        def test_step(self, batch: Any, batch_idx: int) -> None:
            raise KeyError("image")

    fitted, path = trainer(qat.QuantizationAwareTraining()), tmp_path / "last.ckpt"
    fitted.fit(Odd(), loader, loader)
    fitted.save_checkpoint(path)
    with pytest.raises(ConfigError, match=r"Odd\.test_step failed before it called 'model'.*set example_input_array"):
        trainer(qat.QuantizationAwareTraining()).test(Odd(), loader, ckpt_path=path)
    told = Odd()
    told.example_input_array = torch.randn(2, 3, 8, 8)
    with pytest.raises(KeyError, match="image"):  # of the stage itself, which has begun
        trainer(qat.QuantizationAwareTraining()).test(told, loader, ckpt_path=path)
    assert isinstance(told.model, PreparedModel)


@pytest.mark.runtime
def test_12896_test_of_the_best_after_export(trainer: Trainers, tested: type, loader: Loader, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor="val_loss")
    callback = qat.QuantizationAwareTraining(export=tmp_path / "model.onnx", verify=False)
    module = tested()
    fitted = trainer(callback, best, enable_checkpointing=True)
    fitted.fit(module, loader, loader)
    (validated,) = fitted.validate(module, loader, ckpt_path="best", verbose=False)
    (results,) = fitted.test(module, loader, ckpt_path="best", verbose=False)
    assert results["test_loss"] == validated["val_loss"] == pytest.approx(float(best.best_model_score))


def test_8507_ranges_stay_outside_training(trainer: Trainers, tested: type, loader: Loader) -> None:
    """In the sanity check, validation, test and prediction, on data that would move them a hundredfold."""

    class Watch(pl.Callback):
        before: dict[str, Tensor]

        def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
            self.before = state_of(module)

        def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
            assert equal(self.before, state_of(module))

    images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
    loud = DataLoader(torch.utils.data.TensorDataset(100 * images, labels), batch_size=8)
    module = tested()
    fitted = trainer(qat.QuantizationAwareTraining(freeze_observers_at=1, freeze_bn_at=1), Watch(), max_epochs=2)
    fitted.fit(module, loader, loud)
    after = state_of(module)
    fitted.validate(module, loud, verbose=False)
    fitted.test(module, loud, verbose=False)
    fitted.predict(module, loud)
    assert equal(after, state_of(module))


class Pair(nn.Module):
    """An image and its depth, the one of them by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

    def forward(self, image: Tensor, depth: Tensor, *, scale: Tensor | None = None) -> Tensor:
        found = F.relu(self.image(image) + self.depth(depth)).mean((2, 3))
        return self.fc(found if scale is None else found * scale)


class PairModule(pl.LightningModule):
    def __init__(self, call: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self.pair, self.call = Pair(), call

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.call(self.pair, batch), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


@pytest.fixture
def pairs() -> Loader:
    torch.manual_seed(0)
    rows = [
        {"image": torch.randn(3, 8, 8), "depth": torch.randn(1, 8, 8), "scale": torch.rand(4), "label": i % 4}
        for i in range(16)
    ]
    return DataLoader(rows, batch_size=8)  # type: ignore[arg-type]


@pytest.mark.runtime
@pytest.mark.parametrize(
    ("call", "inputs"),
    [
        pytest.param(lambda n, b: n(b["image"], depth=b["depth"], scale=b["scale"]), 3, id="15862 keywords"),
        pytest.param(lambda n, b: n(b["image"], b["depth"]), 2, id="7926 several inputs"),
    ],
)
def test_15862_and_7926_what_forward_takes(
    trainer: Trainers, pairs: Loader, tmp_path: Path, call: Any, inputs: int
) -> None:
    module, callback = PairModule(call), qat.QuantizationAwareTraining(export=tmp_path / "pair.onnx", verify=False)
    trainer(callback).fit(module, pairs)
    assert callback.artifact is not None
    assert len(callback.artifact.inputs) == inputs
    report = qat.verify(module.pair, callback.artifact, [_as_inputs(b, inputs) for b in pairs])
    assert report.stages[-1].agreement > 90


def _as_inputs(batch: Mapping[str, Tensor], count: int) -> Any:
    named = {name: batch[name] for name in ("image", "depth", "scale")[:count]}
    return named, batch["label"]


def test_11047_with_pruning(trainer: Trainers, stranger: type, loader: Loader) -> None:
    """Half of the weights are zero, and zero is an integer: the file is as sparse."""
    module, callback = stranger(), qat.QuantizationAwareTraining()
    pruning = ModelPruning("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False)
    trainer(callback, pruning, max_epochs=2).fit(module, loader, loader)
    zeros = (module.model.conv.weight == 0).float().mean()
    assert zeros > 0.4
    integers = module.model.conv.weight_quantizer.integers(module.model.conv.weight)
    assert (integers == 0).float().mean() >= zeros
    assert qat.convert(module.model)(next(iter(loader))[0]).shape == (8, 4)


def test_11047_with_a_float_model_that_is_pruned(trainer: Trainers, stranger: type, loader: Loader) -> None:
    module = stranger()
    prune.random_unstructured(module.model.conv, "weight", 0.5)
    module(next(iter(loader))[0]).sum().backward()
    mask = module.model.conv.weight_mask.clone()
    trainer(qat.QuantizationAwareTraining(), max_epochs=2).fit(module, loader, loader)
    integers = dict(qat.convert(module.model).named_buffers())["conv.weight"]
    assert (integers[mask == 0] == 0).all()
    assert (integers[mask == 1] != 0).float().mean() > 0.9


def test_11047_pruning_of_what_was_replaced(trainer: Trainers, stranger: type, loader: Loader) -> None:
    pruning = ModelPruning("l1_unstructured", amount=0.5)
    with pytest.raises(ConfigError, match="ModelPruning prunes layers that were replaced when Stranger was prepared"):
        trainer(pruning, qat.QuantizationAwareTraining()).fit(stranger(), loader, loader)


@pytest.mark.parametrize("training", [True, False])
def test_12890_batchnorm_is_there_for_training(
    trainer: Trainers, stranger: type, tiny_net: type, loader: Loader, training: bool
) -> None:
    """It learns, and without fake quantization the network is the float one in both modes; nothing is folded."""
    module = stranger()
    before = state_of(module.model.norm)
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    after = state_of(module.model.norm)
    assert not any(torch.equal(before[name], after[name]) for name in before)
    floats = tiny_net().train(training)
    floats.load_state_dict({k: v for k, v in module.model.state_dict().items() if k in floats.state_dict()})
    qat.freeze_batchnorm(module.model, frozen=False)
    module.model.train(training)
    qat.fake_quant(module.model, enabled=False)
    images = next(iter(loader))[0]
    torch.manual_seed(1)
    expected = floats(images)
    torch.manual_seed(1)
    torch.testing.assert_close(module.model(images), expected, rtol=0, atol=0)


def test_10968_float_tensors_after_fit(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    module, callback, images = stranger(), qat.QuantizationAwareTraining(), next(iter(loader))[0]
    trainer(callback).fit(module, loader, loader)
    logits = module.eval()(images)
    assert logits.dtype is torch.float32
    torch.save(module.state_dict(), tmp_path / "state.pt")
    fresh = stranger()
    callback.prepare(fresh, images)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(fresh.eval()(images), logits, rtol=0, atol=0)


def test_16750_the_module_is_left_as_it_was(trainer: Trainers, stranger: type, loader: Loader) -> None:
    """Nothing is wrapped, so the module copies, pickles and trains again; of integers it knows nothing.

    Besides its network, only what it says in checkpoints is another.
    """
    module = stranger()
    before = set(vars(module))
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    hooks = {"on_save_checkpoint", "on_load_checkpoint"}
    assert set(vars(module)) - before <= {"_hparams", *hooks}  # the first Lightning keeps
    assert not {torch.int8, torch.uint8} & {value.dtype for value in module.state_dict().values()}
    images = next(iter(loader))[0]
    expected = module.eval()(images)
    torch.testing.assert_close(copy.deepcopy(module)(images), expected, rtol=0, atol=0)
    torch.testing.assert_close(pickle.loads(pickle.dumps(module.model))(images), expected, rtol=0, atol=0)
