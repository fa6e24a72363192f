"""The callback under what a Trainer and a module can be told: precision, limits, accumulation, loaders, optimizers."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import qat
from qat.errors import CaptureError, ConfigError, PlacementError
from qat.placement import PreparedModel
from qat.training import AveragedWeights, FrozenBackbone

Trainers = Callable[..., pl.Trainer]
Loader = DataLoader[Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "overfit": {"overfit_batches": 2},
    "limits": {"limit_train_batches": 0.5, "limit_val_batches": 1},
    "no sanity check": {"num_sanity_val_steps": 0},
    "no validation": {"limit_val_batches": 0},
    "accumulation": {"accumulate_grad_batches": 3},
    "clipping": {"gradient_clip_val": 0.5},
    "reloading": {"reload_dataloaders_every_n_epochs": 1},
    "bf16-mixed": {"precision": "bf16-mixed"},
}


@pytest.mark.runtime
@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_trains_and_delivers(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    module = stranger()
    callback = qat.QuantizationAwareTraining(export=tmp_path / "model.onnx")
    trainer(callback, max_epochs=2, **options).fit(module, loader, loader)
    assert callback.report is not None
    assert callback.report.passed


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_scales_stay_float32(trainer: Trainers, stranger: type, loader: Loader, precision: Any) -> None:
    with pytest.raises(ConfigError, match=f"precision={precision} changes the type of scales.*bf16-mixed"):
        trainer(qat.QuantizationAwareTraining(), precision=precision).fit(stranger(), loader, loader)


@pytest.mark.filterwarnings("ignore:You passed `Trainer.*AMP with fp16 is not supported on CPU:UserWarning")
def test_half_precision_where_there_is_none(trainer: Trainers, stranger: type, loader: Loader) -> None:
    """On a CPU Lightning takes bf16 instead, and says so."""
    module = stranger()
    trainer(qat.QuantizationAwareTraining(), precision="16-mixed").fit(module, loader, loader)
    assert all(q.scale.dtype is torch.float32 for q in qat.quantizers(module).values())


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_validation_test_and_prediction_before_fit(
    trainer: Trainers, stranger: type, loader: Loader, stage: str
) -> None:
    """The module is float then, and stays it."""

    class Every(stranger):  # type: ignore[misc,valid-type]
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0])

    module = Every()
    before = set(vars(module))
    quiet = trainer(qat.QuantizationAwareTraining())
    images = next(iter(loader))[0]
    expected = module.eval()(images)
    module.train()
    if stage == "predict":
        torch.testing.assert_close((quiet.predict(module, loader) or [])[0], expected, rtol=0, atol=0)
    else:
        (results,) = getattr(quiet, stage)(module, loader, verbose=False)
        assert min(results.values()) > 0
    assert not isinstance(module.model, PreparedModel)
    assert set(vars(module)) - before <= {"_hparams"}
    quiet.fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)


def test_a_compiled_network_is_prepared_itself(
    trainer: Trainers, stranger: type, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    module = stranger()
    module.model = torch.compile(module.model, backend="eager")
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)
    assert "model trains without torch.compile, which hides its layers; compile='regional' helps" in caplog.text


def test_a_compiled_module_is_prepared_itself(
    trainer: Trainers, stranger: type, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    """And trains as one that never was compiled, bit for bit."""
    compiled = stranger()
    plain = stranger(network=copy.deepcopy(compiled.model))
    for fitted in (plain, torch.compile(compiled, backend="eager")):
        torch.manual_seed(3)
        trainer(qat.QuantizationAwareTraining()).fit(fitted, loader, loader)
    assert isinstance(compiled.model, PreparedModel)
    assert not {"forward", "training_step", "validation_step"} & set(vars(compiled))
    ours, theirs = compiled.state_dict(), plain.state_dict()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert "Stranger trains without torch.compile, which would hold its steps" in caplog.text


@pytest.mark.parametrize("recipe", ["w8a8", "w4a4_lsq", "w4a4_pact"])
def test_deterministic(
    trainer: Trainers, stranger: type, loader: Loader, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    """No operator of a step is one that torch refuses then; twice the same, bit for bit."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)  # Lightning sets it
    states = []
    try:
        for _ in range(2):
            torch.manual_seed(5)
            module = stranger()
            trainer(qat.QuantizationAwareTraining(recipe=recipe), deterministic=True, max_epochs=2).fit(
                module, loader, loader
            )
            assert torch.are_deterministic_algorithms_enabled()
            states.append(module.state_dict())
    finally:
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert [key for key in states[0] if not torch.equal(states[0][key], states[1][key])] == []


@pytest.mark.runtime
def test_a_dict_as_one_input(trainer: Trainers, stranger: type, tiny_net: type, loader: Loader, tmp_path: Path) -> None:
    """Its entries are the inputs of the file; where it cannot be opened, that is said before training."""

    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny_net()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.net(batch["image"])

    class Nested(Takes):
        def forward(self, batch: dict[str, Any]) -> Tensor:
            return self.net(batch["image"]["left"])

    class Dicts(stranger):  # type: ignore[misc,valid-type]
        def forward(self, x: Tensor) -> Tensor:
            return self.model({"image": {"left": x} if isinstance(self.model, Nested) else x})

    callback = qat.QuantizationAwareTraining(export=tmp_path / "model.onnx")
    module = Dicts(network=Takes())
    trainer(callback).fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)
    assert callback.artifact is not None
    assert callback.artifact.inputs == ("image",)
    assert callback.report is not None
    assert callback.report.passed
    with pytest.raises(ConfigError, match=r"forward of 'model' takes a dict as one input with another .*\(\*\*batch\)"):
        trainer(qat.QuantizationAwareTraining(export=tmp_path / "nested.onnx")).fit(
            Dicts(network=Nested()), loader, loader
        )


class Branches(nn.Module):
    """What no tracer follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_a_network_that_cannot_be_traced(trainer: Trainers, stranger: type, loader: Loader) -> None:
    module = stranger(network=Branches())
    with pytest.raises(CaptureError, match=r"(?s)Branches cannot be traced at .*placement=modules"):
        trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    assert not isinstance(module.model, PreparedModel)
    trainer(qat.QuantizationAwareTraining(placement="modules")).fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)


def test_a_recipe_that_leaves_nothing(trainer: Trainers, stranger: type, loader: Loader) -> None:
    module = stranger()
    with pytest.raises(PlacementError, match="nothing to quantize in TinyNet"):
        trainer(qat.QuantizationAwareTraining(exclude=["*"])).fit(module, loader, loader)
    assert not isinstance(module.model, PreparedModel)


@pytest.mark.runtime
def test_several_loaders(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    """Training gives a batch of each at once, validation one after the other."""

    class Several(stranger):  # type: ignore[misc,valid-type]
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx) + super().training_step(batch["b"], batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
            super().validation_step(batch, batch_idx)

    callback = qat.QuantizationAwareTraining(export=tmp_path / "model.onnx")
    both = CombinedLoader({"a": loader, "b": loader}, "min_size")
    trainer(callback, max_epochs=2, limit_val_batches=3).fit(Several(), both, [loader, loader])
    assert callback.report is not None
    assert callback.report.examples == 2 * 3 * 8


def test_several_optimizers(trainer: Trainers, stranger: type, loader: Loader) -> None:
    class Two(stranger):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:  # type: ignore[override]
            return [torch.optim.SGD(self.model.conv.parameters(), lr=0.1), torch.optim.Adam(self.model.fc.parameters())]

    module = Two()
    before = {name: p.detach().clone() for name, p in module.model.named_parameters()}
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    moved = {name for name, p in module.model.named_parameters() if name in before and not torch.equal(p, before[name])}
    assert {"conv.weight", "fc.weight", "fc.bias"} <= moved
    assert "norm.weight" not in moved


def test_configure_model_beside_another_child(
    trainer: Trainers, tiny_net: type, stranger: type, loader: Loader
) -> None:
    """What is there when fit starts is a teacher, and stays float."""

    class Student(stranger):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__("teacher")

        @property
        def network(self) -> nn.Module:
            return self.model

        def configure_model(self) -> None:
            if not hasattr(self, "model"):
                self.model = tiny_net()

    module = Student()
    trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)
    assert not isinstance(module.teacher, PreparedModel)


def test_setup_builds_the_student_and_the_data(
    trainer: Trainers, tiny_net: type, stranger: type, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning calls a module's setup behind those of callbacks, then configure_model on the strategy's device."""

    class Student(stranger):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__("teacher")
            self.rows = None

        @property
        def network(self) -> nn.Module:
            return self.model

        def setup(self, stage: str) -> None:
            self.rows = loader.dataset
            self.model = tiny_net()

        def train_dataloader(self) -> Loader:
            return DataLoader(self.rows, batch_size=8, shuffle=True)  # type: ignore[arg-type]

    module, fitted = Student(), trainer(qat.QuantizationAwareTraining())
    monkeypatch.setattr(fitted.strategy, "tensor_init_context", lambda *_: torch.device("meta"))
    fitted.fit(module, val_dataloaders=loader)
    assert isinstance(module.model, PreparedModel)
    assert not isinstance(module.teacher, PreparedModel)
    assert "configure_model" not in vars(module)


@pytest.mark.parametrize(
    "behind", [AveragedWeights, lambda: FrozenBackbone(["fc.weight", "fc.bias"])], ids=["average", "backbone"]
)
def test_a_callback_that_takes_the_network_before_setup(
    trainer: Trainers, stranger: type, loader: Loader, behind: Callable[[], pl.Callback]
) -> None:
    class Plain(stranger):  # type: ignore[misc,valid-type]
        def setup(self, stage: str) -> None:
            self.stage = stage

    module, callback = Plain(), behind()
    trainer(qat.QuantizationAwareTraining(freeze_bn_at=1), callback).fit(module, loader, loader)
    assert isinstance(module.model, PreparedModel)
    assert torch.equal(module.model.norm.running_mean, torch.zeros(4)) is isinstance(callback, FrozenBackbone)


@pytest.mark.parametrize("late", [False, True])
def test_a_fit_that_fails_early_leaves_no_hook(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path, late: bool
) -> None:
    class Late(stranger):  # type: ignore[misc,valid-type]
        def configure_model(self) -> None:
            raise ValueError("no weights")

    module = Late() if late else stranger()
    before = set(vars(module))
    with pytest.raises((ValueError, ConfigError, FileNotFoundError), match=r"no weights|missing\.ckpt"):
        trainer(qat.QuantizationAwareTraining()).fit(module, loader, loader, ckpt_path=tmp_path / "missing.ckpt")
    left = set(vars(module)) - before
    assert "configure_model" not in left
    assert ("on_load_checkpoint" in left) is isinstance(module.model, PreparedModel)  # which says where its ranges are
    assert not hasattr(module.on_load_checkpoint, "own")  # the callback's look at what is loaded


def test_the_modules_own_look_at_a_checkpoint_stays(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path
) -> None:
    seen: list[Any] = []
    module, fitted = stranger(), trainer(qat.QuantizationAwareTraining())
    fitted.fit(module, loader, loader)
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    own = module.on_load_checkpoint = seen.append
    trainer(qat.QuantizationAwareTraining(), max_epochs=2).fit(module, loader, loader, ckpt_path=tmp_path / "a.ckpt")
    assert len(seen) == 1
    assert module.on_load_checkpoint is own


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"format": 2, "target": "onnxruntime", "settings": {}}, "its entry 'qat' names no recipe"),
        ({"format": 3, "recipe": "w8a8", "target": "torch", "ranges": {"a": 1}}, "its entry 'qat' has ranges that"),
        ({"format": 99}, "it has a newer format, 99"),
        ({}, "its entry 'qat' has the format None"),
    ],
)
def test_a_checkpoint_whose_entry_means_nothing(
    trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    fitted, path = trainer(qat.QuantizationAwareTraining()), tmp_path / "a.ckpt"
    fitted.fit(stranger(), loader, loader)
    fitted.save_checkpoint(path)
    torch.save({**torch.load(path, weights_only=True), "qat": about}, path)
    with pytest.raises(ConfigError, match=f"the checkpoint cannot be resumed here: {message}"):
        trainer(qat.QuantizationAwareTraining()).fit(stranger(), loader, loader, ckpt_path=path)


@pytest.mark.parametrize("recipe", [None, 8, ["w8a8"]])
def test_a_recipe_that_is_none(recipe: Any) -> None:
    with pytest.raises(ConfigError, match="a recipe is a name such as w8a8, a mapping or a QuantRecipe, got"):
        qat.QuantizationAwareTraining(recipe=recipe)


def test_export_onto_a_folder(trainer: Trainers, stranger: type, loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(qat.errors.ExportError, match=r"it is a folder\. Name a file for export"):
        trainer(qat.QuantizationAwareTraining(export=tmp_path / "model.onnx")).fit(stranger(), loader, loader)
