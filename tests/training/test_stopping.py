"""A fit that is asked to stop leaves a checkpoint, and goes on from it to the bits of one that was never stopped."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from qat.data.sampler import EpochSampler, LateLoader
from qat.training import Classifier, Interrupted, QuantizationAwareTraining, SafeStop, SeedEveryEpoch

Trainers = Callable[..., pl.Trainer]
EPOCHS = 3

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Ask(pl.Callback):
    """Sends the process a signal at a moment of training."""

    def __init__(self, hook: str, epoch: int, batch: int, number: int = signal.SIGINT, times: int = 1) -> None:
        self.epoch, self.batch, self.number, self.times = epoch, batch, number, times
        setattr(self, hook, self.ask)

    def ask(self, trainer: pl.Trainer, module: Any, *args: Any) -> None:
        index = args[-1] if isinstance(args[-1], int) else args[-2]
        if trainer.state.stage != "sanity_check" and (trainer.current_epoch, index) == (self.epoch, self.batch):
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(40, 3, 8, 8, generator=generator), torch.arange(40) % 4)


class Plain(torch.utils.data.Dataset[Any]):
    """Rows by `Draw`, as the data sets of this package are read."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, draw: Any) -> Any:
        return data()[draw.row]


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "in order": lambda: DataLoader(data(), 8),
    "shuffled": lambda: DataLoader(data(), 8, shuffle=True),
    "own generator": lambda: DataLoader(data(), 8, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "of an image set": lambda: LateLoader(
        Plain(), 8, sampler=EpochSampler(Plain(), seed=1), generator=torch.Generator()
    ),
    "workers": lambda: DataLoader(data(), 8, shuffle=True, num_workers=2),
}


def fit(
    trainer: Trainers, tiny_net: type[nn.Module], folder: Path, *callbacks: pl.Callback, loader: str = "in order",
    ckpt: Path | None = None, quantized: bool = True, seed: int = 5, **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    torch.manual_seed(7)
    module = Classifier(
        tiny_net(), num_classes=4, optimizer=partial(SGD, lr=0.1, momentum=0.9),
        scheduler=partial(OneCycleLR, max_lr=0.1),
    )  # fmt: skip
    torch.manual_seed(seed)
    kept = ModelCheckpoint(folder, save_last=True, enable_version_counter=False)
    own = QuantizationAwareTraining(freeze_observers_at=0.5) if quantized else SafeStop()
    fitted = trainer(own, *callbacks, kept, max_epochs=EPOCHS, enable_checkpointing=True, **options)
    val = DataLoader(data(), 8)
    fitted.fit(module, LOADERS[loader](), val, ckpt_path=ckpt)
    return {k: v.clone() for k, v in module.state_dict().items()}


def require_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.mark.parametrize(
    ("hook", "epoch", "batch"),
    [
        ("on_train_batch_start", 0, 0),
        ("on_before_zero_grad", 1, 2),  # inside a step
        ("on_train_batch_end", 1, 3),
        ("on_train_batch_end", 1, 4),  # the last of an epoch
        ("on_validation_batch_start", 1, 2),
        ("on_validation_batch_end", 1, 4),
        ("on_train_batch_end", 2, 4),  # the last of all
    ],
)
def test_stopped_and_resumed_equals_uninterrupted(
    trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path, hook: str, epoch: int, batch: int
) -> None:
    """Dropout draws from the global generator, and nothing seeds it but the start."""
    if hook == "on_before_zero_grad":
        ask = Ask("on_train_batch_start", epoch, batch)
        setattr(ask, hook, lambda t, m, o: ask.ask(t, m, t.fit_loop.epoch_loop.batch_idx))
        del ask.on_train_batch_start
    else:
        ask = Ask(hook, epoch, batch)
    whole = fit(trainer, tiny_net, tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped by SIGINT") as stopped:
        fit(trainer, tiny_net, tmp_path / "part", ask)
    assert stopped.value.code == 130
    resumed = fit(trainer, tiny_net, tmp_path / "part", ckpt=tmp_path / "part" / "last-interrupted.ckpt", seed=6)
    require_equal(whole, resumed)
    assert not (tmp_path / "part" / "last-interrupted.ckpt").exists()  # of no use any more
    whole_last, last = (torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "part"))
    assert (last["epoch"], last["global_step"]) == (whole_last["epoch"], whole_last["global_step"])
    require_equal(whole_last["state_dict"], last["state_dict"])


@pytest.mark.parametrize(
    ("loader", "epoch"),
    [
        ("shuffled", 0), ("shuffled", 1), ("own generator", 0), ("own generator", 1), ("of an image set", 0),
        ("of an image set", 1), pytest.param("workers", 1, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_rest_of_an_epoch_are_the_same_batches(
    trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path, loader: str, epoch: int
) -> None:
    whole = fit(trainer, tiny_net, tmp_path / "whole", loader=loader)
    with pytest.raises(Interrupted):
        fit(trainer, tiny_net, tmp_path / "part", Ask("on_train_batch_end", epoch, 1), loader=loader)
    last = tmp_path / "part" / "last-interrupted.ckpt"
    require_equal(whole, fit(trainer, tiny_net, tmp_path / "part", loader=loader, ckpt=last, seed=6))


def test_stopped_twice_in_an_epoch(trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path) -> None:
    whole = fit(trainer, tiny_net, tmp_path / "whole", loader="shuffled", quantized=False)
    last = tmp_path / "part" / "last-interrupted.ckpt"
    for batch, ckpt in ((0, None), (2, last)):
        with pytest.raises(Interrupted, match="SIGTERM"):
            fit(
                trainer, tiny_net, tmp_path / "part", Ask("on_train_batch_end", 1, batch, signal.SIGTERM),
                loader="shuffled", quantized=False, ckpt=ckpt,
            )  # fmt: skip
    require_equal(
        whole, fit(trainer, tiny_net, tmp_path / "part", loader="shuffled", quantized=False, ckpt=last, seed=9)
    )


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2}, {"val_check_interval": 2}, {"limit_train_batches": 4}]
)
def test_with_what_a_trainer_can_be_told(
    trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path, options: dict[str, int]
) -> None:
    seeded = SeedEveryEpoch(0)
    whole = fit(trainer, tiny_net, tmp_path / "whole", seeded, loader="of an image set", **options)
    with pytest.raises(Interrupted):
        fit(trainer, tiny_net, tmp_path / "part", seeded, Ask("on_train_batch_end", 1, 0), loader="of an image set",
            **options)  # fmt: skip
    last = tmp_path / "part" / "last-interrupted.ckpt"
    resumed = fit(trainer, tiny_net, tmp_path / "part", seeded, loader="of an image set", ckpt=last, **options)
    require_equal(whole, resumed)


def test_the_message_says_how_to_go_on(
    trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with caplog.at_level(logging.WARNING), pytest.raises(Interrupted, match="SIGTERM") as stopped:
        fit(trainer, tiny_net, tmp_path / "kept", Ask("on_train_batch_start", 1, 1, signal.SIGTERM))
    assert stopped.value.code == 143
    assert "SIGTERM: training stops behind this step; once more stops at once" in caplog.text
    path = tmp_path / "kept" / "last-interrupted.ckpt"
    assert f"stopped by SIGTERM at step 7; ckpt_path={path} goes on there" in caplog.text
    assert path.is_file()
    with pytest.raises(KeyboardInterrupt):  # Lightning puts back what it found, which then steps aside
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_asked_twice_it_stops_at_once(trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(trainer, tiny_net, tmp_path / "kept", Ask("on_train_batch_start", 1, 1, times=2))
    assert not (tmp_path / "kept" / "last-interrupted.ckpt").exists()
    assert (tmp_path / "kept" / "last.ckpt").is_file()  # of the epoch before


def test_a_trainer_that_writes_no_checkpoints(
    trainer: Trainers, stranger: type[pl.LightningModule], loader: DataLoader[Any], caplog: pytest.LogCaptureFixture
) -> None:
    fitted = trainer(QuantizationAwareTraining(), Ask("on_train_batch_end", 0, 1), max_epochs=2)
    with pytest.raises(Interrupted):
        fitted.fit(stranger(), loader, loader)
    assert "nothing is saved, because this Trainer writes no checkpoints" in caplog.text


def test_ckpt_path_last_of_a_trainer_finds_it(trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path) -> None:
    whole = fit(trainer, tiny_net, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(trainer, tiny_net, tmp_path / "part", Ask("on_train_batch_end", 1, 1))
    require_equal(whole, fit(trainer, tiny_net, tmp_path / "part", ckpt="last"))  # type: ignore[arg-type]


def test_a_trainer_has_one(trainer: Trainers, stranger: type[pl.LightningModule], loader: DataLoader[Any]) -> None:
    fitted = trainer(QuantizationAwareTraining())
    for _ in range(2):
        fitted.fit(stranger(), loader, loader)
    assert sum(isinstance(c, SafeStop) for c in fitted.callbacks) == 1  # type: ignore[attr-defined]


class Seen(pl.Callback):
    """Which batches trained, by epoch and index; saves a checkpoint in a hook of step 7, inside the second epoch."""

    def __init__(self, hook: str, path: Path) -> None:
        self.batches: dict[tuple[int, int], list[int]] = {}
        self.path = path
        setattr(self, hook, self.save)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        self.batches[trainer.current_epoch, index] = (batch[0][:, 0, 0, 0] * 1e6).int().tolist()

    def save(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize(
    ("hook", "options"), [("on_validation_end", {"val_check_interval": 2}), ("on_train_batch_end", {})]
)
def test_any_checkpoint_inside_an_epoch_goes_on_with_the_batches_left(
    trainer: Trainers, tiny_net: type[nn.Module], tmp_path: Path, hook: str, options: dict[str, int], quantized: bool
) -> None:
    """The schedule asks for the number of steps, so that loaders are made before a checkpoint is read."""
    options = {"loader": "of an image set", "quantized": quantized, **options}  # type: ignore[dict-item]
    whole, rest = Seen(hook, tmp_path / "inside.ckpt"), Seen(hook, tmp_path / "other.ckpt")
    fit(trainer, tiny_net, tmp_path, whole, **options)  # type: ignore[arg-type]
    fit(trainer, tiny_net, tmp_path, rest, ckpt=whole.path, **options)  # type: ignore[arg-type]
    assert rest.batches == {key: rows for key, rows in whole.batches.items() if key >= (1, 2)}
