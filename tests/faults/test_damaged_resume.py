"""Checkpoints with something else where a Trainer expects its own: refused with one message, or restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qat.errors import CheckpointError, QatError
from qat.training import CarefulCheckpointIO, QuantizationAwareTraining, SeedEveryEpoch
from qat.training.restorable import require_restorable, strange_structure, strange_weights
from qat.training.resumption import require_prepared_alike, require_readable
from qat.training.saved import join

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
Path_ = tuple[Any, ...]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.model(batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


def fitted(folder: Path, ckpt_path: Path | None = None, epochs: int = 1) -> tuple[pl.Trainer, Net]:
    torch.manual_seed(0)
    module, callback = Net(), QuantizationAwareTraining(calibration_batches=1)
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        plugins=[CarefulCheckpointIO()],
        callbacks=[callback, SeedEveryEpoch(0), ModelCheckpoint(folder, "last", enable_version_counter=False)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(4, 3, 4, 4)), 2), ckpt_path=ckpt_path)
    return trainer, module


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], pl.Trainer, Net]:
    """A checkpoint of one epoch, and the Trainer that wrote it."""
    folder = tmp_path_factory.mktemp("whole")
    trainer, module = fitted(folder)
    return torch.load(folder / "last.ckpt", weights_only=True), trainer, module


def put(content: dict[str, Any], *path: Any) -> dict[str, Any]:
    """The checkpoint with the last of `path` under the others; `...` takes the entry away."""
    content = copy.deepcopy(content)
    *way, key, value = path
    node: Any = content
    for step in way:
        node = node[step]
    if value is ...:
        del node[key]
    else:
        node[key] = copy.deepcopy(value)  # what reads it may write into it, and a drawn value is drawn again
    return content


PROGRESS = ("loops", "fit_loop", "epoch_progress")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            ("state_dict", "model.0.weight", torch.ones(2, 3, 3, 2)),
            r"'model\.0\.weight' is \[2, 3, 3, 2\], need \[2, 3",
        ),
        (("state_dict", "model.0.weight", torch.ones(2, 3, 3, 3, dtype=torch.complex64)), "is torch.complex64, need"),
        (("state_dict", "model.0.weight", torch.ones(2, 3, 3, 3, dtype=torch.bool)), "is torch.bool, need torch.float"),
        (("state_dict", "model.0.weight", 3), r"'model\.0\.weight' is of type int"),
        (("state_dict", "model.0.weight", ...), r"only in the module: 'model\.0\.weight'"),
        (("state_dict", 7, torch.ones(1)), "state_dict has keys that are no names"),
        (("optimizer_states", 3), "its optimizer_states is of type int, not list"),
        (("optimizer_states", [{}]), r"optimizer_states\[0\] has no state and param_groups"),
        (("optimizer_states", []), "it has 0 optimizers, and this training has 1"),
        (
            ("optimizer_states", 0, "state", 0, "momentum_buffer", torch.ones(3)),
            r"momentum_buffer of \[3\] for a param",
        ),
        (("optimizer_states", 0, "param_groups", 0, "lr", "fast"), r"param_groups\[0\]\.lr is of type str, not a num"),
        (
            ("optimizer_states", 0, "param_groups", 0, "lr", torch.ones(2)),
            r"param_groups\[0\]\.lr is a tensor of \[2\], not a num",
        ),
        (
            ("optimizer_states", 0, "state", 0, "step", torch.ones(2)),
            r"has a step that is a tensor of \[2\], not a number",
        ),
        (("optimizer_states", 0, "param_groups", 0, "params", [0]), r"has groups of \[1\] parameters"),
        (("lr_schedulers", [3]), r"lr_schedulers\[0\] is no mapping"),
        (("lr_schedulers", []), "it has 0 schedules, and this training has 1"),
        (("lr_schedulers", 0, "last_epoch", "monday"), r"lr_schedulers\[0\]\.last_epoch is of type str"),
        (("lr_schedulers", [{"colour": 1}]), r"lr_schedulers\[0\] has no last_epoch"),
        (("loops", 3), "its loops is of type int, not dict"),
        (("loops", {"fit_loop": 3}), r"its loops\.fit_loop is of type int"),
        ((*PROGRESS, "current", ...), r"its loops\.fit_loop\.epoch_progress has no current"),
        ((*PROGRESS, "current", "completed", -2), r"epoch_progress\.current\.completed is -2"),
        ((*PROGRESS, "current", "completed", 9), "9 epochs of it are done, and this training has 2"),
        (("callbacks", 3), "its callbacks is of type int, not dict"),
        (("pytorch-lightning_version", ...), "it has no pytorch-lightning_version"),
        (("state_dict", ...), "it has no state_dict"),
        (("pytorch-lightning_version", "two"), "its pytorch-lightning_version is 'two'"),
        (("epoch", "last"), "its epoch is of type str, not int"),
    ],
)
def test_refused(whole: Any, tmp_path: Path, path: Path_, message: str) -> None:
    torch.save(put(whole[0], *path), tmp_path / "odd.ckpt")
    with pytest.raises(CheckpointError, match=message):
        fitted(tmp_path, tmp_path / "odd.ckpt", epochs=2)


def test_the_checkpoint_itself_is_resumed(whole: Any, tmp_path: Path) -> None:
    torch.save(whole[0], tmp_path / "own.ckpt")
    trainer, _ = fitted(tmp_path, tmp_path / "own.ckpt", epochs=2)
    assert trainer.global_step == 4


def test_a_flood_of_keys_is_one_short_message(whole: Any, tmp_path: Path) -> None:
    content = copy.deepcopy(whole[0])
    content["state_dict"] |= {f"flood.{i}": torch.zeros(1) for i in range(20_000)}
    torch.save(content, tmp_path / "flood.ckpt")
    with pytest.raises(CheckpointError, match=r"only in the checkpoint: 'flood\.0'.* and 19992 more") as caught:
        fitted(tmp_path, tmp_path / "flood.ckpt", epochs=2)
    assert len(str(caught.value)) < 1_000


values = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**6), st.floats(), st.text(max_size=4), st.just([]), st.just({}),
    st.lists(st.integers(-1, 3), max_size=2), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([torch.zeros(0), torch.ones(2), torch.ones(2, 3, 3, 3, dtype=torch.int8), torch.tensor(3)]),
)  # fmt: skip


def paths(node: Any, prefix: Path_ = ()) -> list[Path_]:
    inside = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = []
    for key, value in inside:
        found += [(*prefix, key), *paths(value, (*prefix, key))]
    return found


def restores_or_refuses(whole: Any, draw: Callable[..., Any]) -> None:
    """What Lightning does with a checkpoint after the questions are asked, without the training."""
    content, trainer, module = whole
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(paths(content)))
        content = put(content, *path, draw(st.one_of(values, st.just(...))))
    try:
        if reason := strange_structure(content):
            raise CheckpointError(reason)
        if not isinstance(content.get("state_dict"), dict):
            raise CheckpointError("none of a Trainer's")
        callback = trainer.callbacks[0]  # type: ignore[attr-defined]
        require_readable(content)
        join(content)
        require_prepared_alike(module, content, callback.recipe, callback.target)
        if reason := strange_weights(module, content["state_dict"]):
            raise CheckpointError(reason)
        require_restorable(trainer, content)
    except QatError as error:
        assert str(error)  # noqa: PT017  (either outcome is right)
        assert len(str(error)) < 2_000  # noqa: PT017
        return
    again = Net()
    again.model = copy.deepcopy(module.model)
    again.load_state_dict(content["state_dict"])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.1, momentum=0.9)
    for state in content.get("optimizer_states", []):
        optimizer.load_state_dict(state)
    for state in content.get("lr_schedulers", []):
        torch.optim.lr_scheduler.StepLR(optimizer, 1).load_state_dict(state)
    pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu").fit_loop.load_state_dict(
        content.get("loops", {}).get("fit_loop", {})
    )


@settings(max_examples=40)
@given(st.data())
def test_anything_anywhere(whole: Any, data: Any) -> None:
    restores_or_refuses(whole, data.draw)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@settings(max_examples=10_000)
@given(st.data())
def test_anything_anywhere_ten_thousand_times(whole: Any, data: Any) -> None:
    restores_or_refuses(whole, data.draw)
