from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import qat
from qat.artifact import fingerprint
from qat.errors import CalibrationError, ConfigError, ExportError, NumericsError, ParityError
from qat.placement import PreparedModel
from qat.training import Phase, QuantizationAwareTraining

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
LEARN, RANGES, NORMS = Phase


class Recorder(pl.Callback):
    """What a batch finds, and what it leaves: switches, ranges, BatchNorm statistics."""

    def __init__(self, name: str = "model") -> None:
        self.name, self.phases, self.moved, self.validated = name, list[Phase](), list[tuple[bool, bool]](), 0
        self.before: tuple[list[Tensor], list[Tensor]] = ([], [])

    def network(self, module: pl.LightningModule) -> PreparedModel:
        return module.get_submodule(self.name)  # type: ignore[return-value]

    def state(self, module: pl.LightningModule) -> tuple[list[Tensor], list[Tensor]]:
        network = self.network(module)
        ranges = [t.clone() for q in qat.quantizers(network).values() for t in (*q.buffers(),)]
        return ranges, [t.clone() for name, t in network.named_buffers() if "running" in name or "tracked" in name]

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        network = self.network(module)
        observing = {q.observing for q in qat.quantizers(network).values()}
        assert len(observing) == 1
        moves = {network.training: LEARN, False: RANGES}[observing.pop()]
        self.phases.append(NORMS if network.batchnorm_frozen else moves)
        self.before = self.state(module)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        self.moved.append(tuple(differ(a, b) for a, b in zip(self.before, self.state(module), strict=True)))  # type: ignore[arg-type]

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.before = self.state(module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.validated += 1
        assert not any(differ(a, b) for a, b in zip(self.before, self.state(module), strict=True))


def differ(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


# which batch is in which phase


def test_phases_on_the_right_batches(trainer: Trainers, stranger: type, loader: Loader, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "qat.training")
    recorder = Recorder()
    callback = QuantizationAwareTraining(freeze_observers_at=0.5, freeze_bn_at=0.75)
    trainer(callback, recorder, max_epochs=2).fit(stranger(), loader, loader)
    assert recorder.phases == [LEARN] * 4 + [RANGES] * 2 + [NORMS] * 2
    assert recorder.moved == [(True, True)] * 4 + [(False, True)] * 2 + [(False, False)] * 2
    assert recorder.validated == 3  # the sanity check, and two epochs
    assert [r.getMessage() for r in caplog.records if r.getMessage().startswith("epoch")] == [
        "epoch 0, batch 0: learn ranges",
        "epoch 1, batch 0: ranges frozen",
        "epoch 1, batch 2: ranges and BatchNorm statistics frozen",
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, [LEARN] * 4 + [RANGES] * 2 + [NORMS] * 2),
        ({"max_epochs": -1, "max_steps": 6}, [LEARN] * 3 + [RANGES] * 2 + [NORMS]),
        ({"max_epochs": 5, "max_steps": 2}, [LEARN, RANGES]),
        ({"max_epochs": 2, "limit_train_batches": 2}, [LEARN, LEARN, RANGES, NORMS]),
        ({"max_epochs": 2, "val_check_interval": 2}, [LEARN] * 4 + [RANGES] * 2 + [NORMS] * 2),
        ({"fast_dev_run": True}, [LEARN]),
    ],
)
def test_phases_under_lightnings_limits(
    trainer: Trainers, stranger: type, loader: Loader, options: dict[str, Any], expected: list[Phase]
) -> None:
    recorder = Recorder()
    trainer(QuantizationAwareTraining(), recorder, **options).fit(stranger(), loader, loader)
    assert recorder.phases == expected


def test_without_an_end_ranges_never_freeze(trainer: Trainers, stranger: type, loader: Loader, caplog: Any) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 1

    recorder = Recorder()
    trainer(QuantizationAwareTraining(), recorder, Stop(), max_epochs=-1).fit(stranger(), loader, loader)
    assert recorder.phases == [LEARN] * 8
    assert "neither max_epochs nor max_steps is set, so ranges never freeze" in caplog.text


class Endless(IterableDataset[Any]):
    """The batches of a loader, and no length."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


@pytest.mark.parametrize(
    ("epochs", "options", "warning"),
    [
        (1, {}, "to 0 at most here, and freeze_observers_at=0.5 or freeze_bn_at=0.75 is never reached; set max_steps"),
        (2, {}, "to 0.5 at most here, and freeze_bn_at=0.75 is never reached; set max_steps or limit_train_batches"),
        (4, {}, None),
        (1, {"limit_train_batches": 2}, None),
        (1, {"max_steps": 2}, None),
    ],
)
def test_data_without_a_length_counts_epochs(
    trainer: Trainers, stranger: type, loader: Loader, caplog: Any, epochs: int, options: dict[str, Any], warning: Any
) -> None:
    endless = DataLoader(Endless(loader), batch_size=None)
    trainer(QuantizationAwareTraining(), max_epochs=epochs, **options).fit(stranger(), endless, loader)
    told = [r.getMessage() for r in caplog.records if "without a length" in r.getMessage()]
    assert len(told) == (warning is not None)
    assert all(warning in message for message in told)


def test_activations_that_would_never_be_quantized(trainer: Trainers, stranger: type, loader: Loader) -> None:
    callback = QuantizationAwareTraining(activations_from=0.25)
    message = r"activations_from=0\.25 is a share .* to 0 at most here: .* set max_steps or limit_train_batches"
    with pytest.raises(ConfigError, match=message):
        trainer(callback).fit(stranger(), DataLoader(Endless(loader), batch_size=None), loader)


@pytest.mark.filterwarnings("ignore:Found .* module.* in eval mode at the start of training")
def test_batchnorm_that_the_module_freezes_stays_frozen(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Frozen(stranger):  # type: ignore[misc,valid-type]
        def on_train_epoch_start(self) -> None:
            self.model.norm.eval()

    module, recorder = Frozen(), Recorder()
    for _ in range(2):  # the second fit thaws what the schedule froze in the first
        trainer(QuantizationAwareTraining(), recorder, max_epochs=2).fit(module, loader, loader)
    assert len(recorder.moved) == 16
    assert not any(norms for _, norms in recorder.moved)
    assert module.model.norm.running_mean.equal(torch.zeros(4))
    assert not module.model.norm.training


def test_a_second_fit_starts_from_the_first_phase(trainer: Trainers, stranger: type, loader: Loader) -> None:
    module, callback = stranger(), QuantizationAwareTraining()
    trainer(callback).fit(module, loader, loader)
    recorder = Recorder()
    trainer(callback, recorder).fit(module, loader, loader)
    assert recorder.phases == [LEARN, LEARN, RANGES, NORMS]


@pytest.mark.parametrize(("value", "expected"), [(None, [False]), ("regional", [True, False])])
def test_compiled_during_fit(
    trainer: Trainers, stranger: type, loader: Loader, monkeypatch: pytest.MonkeyPatch, value: str, expected: list[bool]
) -> None:
    switched = []
    monkeypatch.setattr("qat.training.callback.compile_regions", lambda network, enabled=True: switched.append(enabled))
    trainer(QuantizationAwareTraining(compile=value)).fit(stranger(), loader, loader)
    assert switched == expected


# the network in its place


@pytest.mark.parametrize(("name", "modules"), [("model", None), ("encoder", None), ("encoder", "encoder")])
def test_network_is_replaced_when_fit_starts(
    trainer: Trainers, stranger: type, loader: Loader, name: str, modules: str | None
) -> None:
    class SeenByOptimizer(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
            assert isinstance(module.network, PreparedModel)
            own = {id(p) for p in module.network.parameters()}
            assert {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]} == own

    module, callback = stranger(name), QuantizationAwareTraining(modules=modules)
    before = module.network.conv.weight.detach().clone()
    fitted = trainer(SeenByOptimizer(), callback)
    assert not isinstance(module.network, PreparedModel)
    fitted.fit(module, loader, loader)
    assert isinstance(module.network, PreparedModel)
    assert not torch.equal(module.network.conv.weight, before)
    (results,) = fitted.validate(module, loader, verbose=False)
    assert results["val_loss"] > 0


def test_a_network_that_configure_model_builds(
    trainer: Trainers, tiny_net: type, stranger: type, loader: Loader
) -> None:
    class Late(stranger):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.model = None

        def configure_model(self) -> None:
            if self.model is None:
                self.model = tiny_net()

    module = Late()
    trainer(QuantizationAwareTraining()).fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)
    assert module.configure_model.__func__ is Late.configure_model


class Mixed(pl.LightningModule):
    """Two networks in a row, dict batches, several inputs, keywords: nothing that `model(batch[0])` would get right."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Sequential(nn.Linear(4, 4))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        features = self.backbone(batch["image"] / 2, other=batch["depth"])
        return F.cross_entropy(self.head(features), batch["label"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor, *, other: Tensor) -> Tensor:
        return F.relu(self.first(x) + self.second(other)).mean((2, 3))


def test_keywords_dicts_and_several_networks(trainer: Trainers) -> None:
    rows = [{"image": torch.randn(3, 8, 8), "depth": torch.randn(1, 8, 8), "label": i % 4} for i in range(16)]
    module = Mixed()
    callback = QuantizationAwareTraining(modules=["backbone", "head"])
    trainer(callback).fit(module, DataLoader(rows, batch_size=8))
    assert list(callback.prepared(module)) == ["backbone", "head"]
    assert all(q.calibrated for q in qat.quantizers(module).values())
    torch.testing.assert_close(
        module.backbone.example_inputs[0], torch.stack([r["image"] for r in rows[:2]]) / 2, rtol=0, atol=0
    )


def test_manual_optimization(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Manual(stranger):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    recorder = Recorder()
    trainer(QuantizationAwareTraining(), recorder, max_epochs=2).fit(Manual(), loader, loader)
    assert recorder.phases == [LEARN] * 4 + [RANGES] * 2 + [NORMS] * 2


def test_a_step_that_logs_before_the_network(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Logs(stranger):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("size", float(len(batch[0])))
            self.log_dict({"index": float(batch_idx)})
            return super().training_step(batch, batch_idx)

    module, fitted = Logs(), trainer(QuantizationAwareTraining())
    fitted.fit(module, loader, loader)
    assert {key: float(fitted.logged_metrics[key]) for key in ("size", "index")} == {"size": 8, "index": 3}
    assert not {"log", "log_dict"} & vars(module).keys()


def test_a_step_that_ends_between_toggling_and_back(trainer: Trainers) -> None:
    """Calibration stops it at the generator, where the parameters of the discriminator are switched off."""

    class Adversarial(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.discriminator = nn.Sequential(nn.Linear(4, 8)), nn.Linear(8, 1)
            self.example_input_array = torch.randn(2, 4)
            self.trainable: list[list[bool]] = []

        def forward(self, z: Tensor) -> Tensor:
            return self.generator(z)

        def training_step(self, batch: Any) -> None:
            self.trainable.append([p.requires_grad for p in self.parameters()])
            for optimizer, sign in zip(self.optimizers(), (-1, 1), strict=True):  # type: ignore[arg-type]
                self.toggle_optimizer(optimizer)
                self.manual_backward(F.softplus(sign * self.discriminator(self(batch[0]))).mean())
                optimizer.step()
                self.untoggle_optimizer(optimizer)

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(m.parameters(), lr=0.1) for m in (self.generator, self.discriminator)]

    module = Adversarial()
    module.generator[0].bias.requires_grad_(False)
    before = module.discriminator.weight.detach().clone()
    noise = DataLoader(TensorDataset(torch.randn(16, 4)), batch_size=8)
    trainer(QuantizationAwareTraining(modules="generator")).fit(module, noise)
    assert module.trainable == [[True, False, True, True]] * 4  # twice to calibrate, twice to train
    assert not torch.equal(module.discriminator.weight, before)


def test_example_input_array_is_taken_at_its_word(trainer: Trainers, stranger: type, loader: Loader) -> None:
    module = stranger()
    module.example_input_array = torch.full((2, 3, 8, 8), 3.0)
    trainer(QuantizationAwareTraining()).fit(module, loader, loader)
    assert module.model.example_inputs[0].unique().tolist() == [3.0]


def test_preparing_and_calibrating_leave_no_trace(trainer: Trainers, stranger: type, loader: Loader) -> None:
    """Weights and random state at the first batch are those of a float run; the modes too."""

    class FirstBatch(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                self.state = {k: v.clone() for k, v in module.state_dict().items()}
                self.images, self.draw = batch[0], torch.rand(())

    def first(*callbacks: pl.Callback) -> FirstBatch:
        pl.seed_everything(3, verbose=False)
        seen = FirstBatch()
        shuffled = DataLoader(loader.dataset, batch_size=8, shuffle=True)
        trainer(*callbacks, seen).fit(stranger(), shuffled, loader)
        return seen

    plain, with_qat = first(), first(QuantizationAwareTraining())
    assert all(torch.equal(plain.state[k], with_qat.state[k]) for k in plain.state)
    assert torch.equal(plain.images, with_qat.images)
    assert torch.equal(plain.draw, with_qat.draw)


# calibration


def test_calibration_by_the_caller_is_kept(trainer: Trainers, stranger: type, loader: Loader) -> None:
    module, callback = stranger(), QuantizationAwareTraining(calibration_batches=2)
    prepared = callback.prepare(module, loader.dataset[0][0][None])
    assert module.model is prepared is callback.prepare(module, loader.dataset[0][0][None])
    assert callback.calibrate(module, loader) == 2
    calibrated = {name: q.scale.clone() for name, q in qat.quantizers(prepared).items()}

    class Start(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
            assert module.model is prepared
            assert all(torch.equal(q.scale, calibrated[name]) for name, q in qat.quantizers(prepared).items())

    trainer(callback, Start(), limit_val_batches=0).fit(module, loader, loader)


def test_calibration_equals_the_librarys(stranger: type, loader: Loader) -> None:
    module, callback = stranger(), QuantizationAwareTraining(calibration_batches=3)
    alone = qat.prepare(module.model, next(iter(loader))[0])
    qat.calibrate(alone, loader, max_batches=3)
    callback.prepare(module, next(iter(loader))[0])
    callback.calibrate(module, loader)
    ours, theirs = qat.quantizers(module.model), qat.quantizers(alone)
    assert all(torch.equal(ours[n].scale, theirs[n].scale) and ours[n].calibrated for n in theirs)


def test_calibration_uses_the_data_modules_own_loader(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Data(pl.LightningDataModule):
        def train_dataloader(self) -> Loader:
            return loader

        val_dataloader = train_dataloader

        def calibration_dataloader(self) -> Loader:
            images, labels = loader.dataset.tensors  # type: ignore[attr-defined]
            return DataLoader(TensorDataset(100 * images, labels), batch_size=8)

    class Scale(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
            self.scale = module.model.x_quantizer.scale.item()

    scale, plain = Scale(), Scale()
    trainer(QuantizationAwareTraining(), scale).fit(stranger(), datamodule=Data())
    trainer(QuantizationAwareTraining(), plain).fit(stranger(), loader, loader)
    assert scale.scale == pytest.approx(100 * plain.scale, rel=1e-5)


def test_no_data_to_calibrate_on(stranger: type, loader: Loader) -> None:
    module, callback = stranger(), QuantizationAwareTraining()
    callback.prepare(module, next(iter(loader))[0])
    with pytest.raises(CalibrationError, match="calibration saw no batch"):
        callback.calibrate(module, [])


# what it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_observers_at": 0.9, "freeze_bn_at": 0.5}, "need 0 <= freeze_observers_at <= freeze_bn_at <= 1"),
        ({"calibration_batches": 0}, "need calibration_batches >= 1, got 0"),
        ({"recipe": "w8a9"}, "unknown recipe 'w8a9'. Did you mean w8a8"),
        ({"target": "onnxruntim"}, "unknown target 'onnxruntim'. Did you mean onnxruntime"),
        ({"compile": "whole"}, "unknown value of compile 'whole'"),
    ],
)
def test_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantizationAwareTraining(**options)


def test_given_twice(trainer: Trainers, stranger: type, loader: Loader) -> None:
    twice = trainer(QuantizationAwareTraining(), QuantizationAwareTraining())
    with pytest.raises(ConfigError, match="QuantizationAwareTraining is given twice"):
        twice.fit(stranger(), loader, loader)


@pytest.mark.parametrize("first", [True, False])
def test_an_average_that_takes_statistics_after_training(
    trainer: Trainers, stranger: type, loader: Loader, first: bool
) -> None:
    callbacks = [StochasticWeightAveraging(swa_lrs=0.05), QuantizationAwareTraining()][:: 1 if first else -1]
    with pytest.raises(ConfigError, match=r"StochasticWeightAveraging resets .* would stay 0 and 1.*AveragedWeights"):
        trainer(*callbacks).fit(stranger(), loader, loader)


@pytest.mark.runtime
def test_lightnings_average_is_what_the_file_has(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path
) -> None:
    callback, module = QuantizationAwareTraining(export=tmp_path / "model.onnx"), stranger()
    trainer(callback, EMAWeightAveraging(decay=0.5), max_epochs=2).fit(module, loader, loader)
    assert callback.artifact is not None
    assert callback.artifact.metadata["fingerprint"] == fingerprint(qat.convert(module.model))
    with pytest.raises(ConfigError, match=r"EMAWeightAveraging would average the float network.* let it stand behind"):
        trainer(EMAWeightAveraging(decay=0.5), QuantizationAwareTraining()).fit(stranger(), loader, loader)


def test_prepared_for_something_else(stranger: type, loader: Loader) -> None:
    module, images = stranger(), next(iter(loader))[0]
    QuantizationAwareTraining().prepare(module, images)
    with pytest.raises(ConfigError, match="'model' is already prepared with recipe w8a8 for target onnxruntime, the"):
        QuantizationAwareTraining(recipe="w4a8").prepare(module, images)


def test_optimizer_from_before(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Early(stranger):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.optimizer = torch.optim.SGD(self.parameters(), lr=0.1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.optimizer

    with pytest.raises(ConfigError, match=r"5 of the optimizers' 5 parameters are not in Early.*configure_optimizers"):
        trainer(QuantizationAwareTraining()).fit(Early(), loader, loader)


def test_a_step_that_never_calls_the_network(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Elsewhere(stranger):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.zeros((), requires_grad=True)

    with pytest.raises(ConfigError, match=r"Elsewhere\.training_step never called 'model'"):
        trainer(QuantizationAwareTraining()).fit(Elsewhere(), loader, loader)


def test_a_step_that_fails_before_the_network(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Fails(stranger):  # type: ignore[misc,valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise KeyError("image")

    with pytest.raises(ConfigError, match=r"Fails\.training_step failed before it called 'model': KeyError.*example"):
        trainer(QuantizationAwareTraining()).fit(Fails(), loader, loader)


def test_nan_names_step_and_module(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Poison(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 2:
                with torch.no_grad():
                    module.model.conv.weight[0] = float("nan")

    module = stranger()
    message = r"nan at step 2; first not finite: 'model\.conv' \(its weight\), before it calls 'model\.conv\.w"
    with pytest.raises(NumericsError, match=message):
        trainer(QuantizationAwareTraining(), Poison()).fit(module, loader, loader)
    assert torch.isfinite(module.model.fc.weight).all()  # it ended before the step reached the other weights


def test_inf_gradient_is_named_before_it_reaches_the_weights(trainer: Trainers, stranger: type, loader: Loader) -> None:
    """A range clamps Inf, so the loss would not tell."""

    class Overflows(stranger):  # type: ignore[misc,valid-type]
        def on_after_backward(self) -> None:
            if self.global_step == 3:
                self.model.norm.weight.grad[1] = float("inf")

    module = Overflows()
    with pytest.raises(NumericsError, match=r"gradient of 'model\.norm\.weight' is not finite at step 3"):
        trainer(QuantizationAwareTraining()).fit(module, loader, loader)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_nan_in_a_batch(trainer: Trainers, stranger: type, loader: Loader) -> None:
    images, labels = (t.clone() for t in loader.dataset.tensors)  # type: ignore[attr-defined]
    images[30, 0, 0, 0] = float("nan")
    broken = DataLoader(TensorDataset(images, labels), batch_size=8)
    callback = QuantizationAwareTraining(calibration_batches=2)
    with pytest.raises(NumericsError, match=r"nan at step 3; first not finite: .*the input of .*the batch itself"):
        trainer(callback).fit(stranger(), broken, loader)


# what it leaves


def test_checkpoint_says_what_it_is(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    module, path = stranger(), tmp_path / "a.ckpt"
    fitted = trainer(QuantizationAwareTraining())
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(path)
    about = torch.load(path, weights_only=True)["qat"]
    assert (about["format"], about["recipe"], about["target"]) == (3, "w8a8", "onnxruntime")
    assert about["settings"]["recipe.weight.bits"] == 8
    message = (
        r"with recipe w8a8 for target onnxruntime, this run has w8a8_symmetric .*recipe\.activation\.scheme is affine "
        r"in the checkpoint and symmetric here"
    )
    with pytest.raises(ConfigError, match=message):
        trainer(QuantizationAwareTraining(recipe="w8a8_symmetric")).fit(stranger(), loader, loader, ckpt_path=path)
    message = r"'model' was prepared differently for the checkpoint.*only in the checkpoint: model\.conv\.weight_q"
    with pytest.raises(ConfigError, match=message):
        trainer(QuantizationAwareTraining(exclude=["conv"])).fit(stranger(), loader, loader, ckpt_path=path)


@pytest.mark.runtime
def test_export_when_fit_ends(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    module, path = stranger(), tmp_path / "deep" / "model.onnx"
    # 32 examples of an untrained network: logits that tie within a step may change class
    callback = QuantizationAwareTraining(export=path)
    trainer(callback, max_epochs=2).fit(module, loader, loader)
    assert callback.artifact is not None
    assert callback.artifact.path == path
    assert callback.report is not None
    assert callback.report.examples == 32
    assert callback.report.passed
    assert isinstance(module.model, PreparedModel)
    assert module(loader.dataset[0][0][None]).dtype is torch.float32
    state = module.state_dict()
    assert not any(t.dtype in (torch.int8, torch.uint8) for t in state.values())
    module.load_state_dict(state)


def test_export_without_verification(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    callback = QuantizationAwareTraining(export=str(tmp_path / "model.pt2"), verify=False)
    trainer(callback).fit(stranger(), loader, loader)
    assert (tmp_path / "model.pt2").stat().st_size > 0
    assert callback.report is None


def test_an_artefact_that_departs_ends_in_an_error(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(prepared: PreparedModel) -> Any:
        with torch.no_grad():
            weight, bias = prepared.fc.weight.clone(), prepared.fc.bias.clone()
            prepared.fc.weight.copy_(weight.flip(0))
            prepared.fc.bias.copy_(bias.flip(0))
            try:
                return qat.convert(prepared)
            finally:
                prepared.fc.weight.copy_(weight)
                prepared.fc.bias.copy_(bias)

    monkeypatch.setattr("qat.training.delivery.convert", other)
    callback = QuantizationAwareTraining(export=tmp_path / "model.onnx")
    with pytest.raises(ParityError, match="departs from the trained model"):
        trainer(callback).fit(stranger(), loader, loader)


def test_fast_dev_run_leaves_nothing(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    callback = QuantizationAwareTraining(export=tmp_path / "model.onnx")
    trainer(callback, fast_dev_run=True).fit(stranger(), loader, loader)
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("file/model.onnx", ExportError, "file is no folder that can be written"),
        ("model.tflite", ConfigError, r"cannot export to 'model.tflite'; known suffixes: .onnx, .pt2"),
    ],
)
def test_a_bad_path_is_refused_before_training(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path, path: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "file").touch()
    module = stranger()
    with pytest.raises(error, match=message):
        trainer(QuantizationAwareTraining(export=tmp_path / path)).fit(module, loader, loader)
    assert not isinstance(module.model, PreparedModel)
