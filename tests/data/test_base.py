from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from qat.data.augmentation import Augmentation
from qat.data.base import ImageData, Splits
from qat.data.images import ImageBatches, InMemory
from qat.data.normalization import Normalization
from qat.errors import ConfigError

UNIT = Normalization(mean=(0, 0, 0), std=(1 / 255,) * 3)  # pixels as they are


class Counted(ImageData):
    """`count` training images, the row number written into every pixel; counts how often it is loaded."""

    def __init__(self, *, count: int = 10, batch_size: int = 4, augment: bool = True, **kwargs: int) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        self.count = count
        self.augment = Augmentation.CROP if augment else None
        self.loads = 0

    def load(self) -> Splits:
        self.loads += 1
        pixels = torch.arange(self.count, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 8, 8) + 1
        read, labels = InMemory(pixels), torch.arange(self.count)
        return Splits(
            train=ImageBatches(read, labels, normalization=UNIT, augment=self.augment, seed=self.seed),
            calibration=ImageBatches(read, labels, normalization=UNIT),
            val=ImageBatches(InMemory(pixels[:3]), labels[:3], normalization=UNIT),
            class_names=tuple(f"class {row}" for row in range(self.count)),
            input_shape=(3, 8, 8),
        )


def ready(**kwargs: int) -> Counted:
    data = Counted(**kwargs)
    data.setup()
    return data


def rows(loader: torch.utils.data.DataLoader[tuple[Tensor, Tensor]], epoch: int | None = None) -> list[int]:
    if epoch is not None:
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [int(label) for _, labels in loader for label in labels]


def test_setup_loads_once():
    data = ready()
    data.setup("fit")
    data.setup("validate")
    assert data.loads == 1


def test_facts_need_setup():
    with pytest.raises(RuntimeError, match=r"call Counted\.setup\(\) before using its data"):
        _ = Counted().num_classes


def test_facts():
    data = ready(count=5)
    assert data.num_classes == 5
    assert data.class_names[4] == "class 4"
    assert data.input_shape == (3, 8, 8)


def test_training_order_is_a_function_of_seed_and_epoch():
    orders = {(seed, epoch): rows(ready(seed=seed).train_dataloader(), epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(10)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    torch.manual_seed(3)
    torch.rand(5)  # what the global generator did does not matter
    assert rows(ready(seed=0).train_dataloader(), 1) == orders[0, 1]


def test_a_resumed_epoch_is_the_uninterrupted_one():
    whole = ready().train_dataloader()
    for epoch in range(3):
        whole.sampler.set_epoch(epoch)
        uninterrupted = list(whole)
    resumed = ready().train_dataloader()
    resumed.sampler.set_epoch(2)
    for (images, labels), (other_images, other_labels) in zip(uninterrupted, resumed, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_calibration_is_training_rows_unaugmented_in_one_shuffled_order():
    data = ready()
    images = torch.cat([images for images, _ in data.calibration_dataloader()])
    order = rows(data.calibration_dataloader())
    assert sorted(order) == list(range(10))
    assert order != list(range(10))
    assert order == rows(ready().calibration_dataloader())
    assert order != rows(ready(seed=1).calibration_dataloader())
    assert torch.equal(images, (torch.tensor(order) + 1.0).view(-1, 1, 1, 1).expand(-1, 3, 8, 8))  # no black borders


def test_evaluation_is_in_stored_order():
    data = ready()
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert rows(loader) == [0, 1, 2]


def test_iterating_leaves_the_global_generator_alone():
    data = ready()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    for loader in (data.train_dataloader(), data.calibration_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 4]),  # a batch of one is left out: BatchNorm over 1 x 1 would raise
        (8, 4, [4, 4]),
        (1, 4, [1]),  # all there is
        (3, 1, [1, 1, 1]),  # asked for
    ],
)
def test_last_batch(count: int, batch_size: int, sizes: list[int]):
    data = ready(count=count, batch_size=batch_size)
    assert [len(labels) for _, labels in data.train_dataloader()] == sizes
    assert sum(len(labels) for _, labels in data.calibration_dataloader()) == count


def test_processes_share_an_epoch():
    class World:
        world_size = 2
        global_rank = 1

    data = ready(count=9, augment=False)
    data.trainer = World()  # type: ignore[assignment]
    # 9 rows are 5 for each of two processes: a last batch of one in both
    assert [len(labels) for _, labels in data.train_dataloader()] == [4]
    data.trainer.global_rank = 0
    first = set(rows(data.train_dataloader(), 0))
    data.trainer.global_rank = 1
    assert first.isdisjoint(rows(data.train_dataloader(), 0))


@pytest.mark.parametrize(("key", "value"), [("batch_size", 0), ("num_workers", -1), ("seed", -1), ("seed", None)])
def test_values_out_of_range(key: str, value: int):
    with pytest.raises(ConfigError, match=rf"data\.{key} must be an integer >= \d, got {value}"):
        Counted(**{key: value})


class Recorder(pl.LightningModule):
    """Writes down the labels of every training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[list[int]] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen.append(batch[1].tolist())
        return self.weight * batch[0].mean()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")  # 10 images in memory
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6 on torch 2.15
@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_resumes_in_the_order_of_an_uninterrupted_run(tmp_path, num_workers: int):
    def fit(epochs: int, ckpt_path: str | None = None) -> tuple[Recorder, pl.Trainer]:
        model = Recorder()
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(model, datamodule=Counted(num_workers=num_workers), ckpt_path=ckpt_path)
        return model, trainer

    uninterrupted, _ = fit(3)
    assert len(uninterrupted.seen) == 9
    assert uninterrupted.seen[:3] != uninterrupted.seen[3:6] != uninterrupted.seen[6:]
    _, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    resumed, _ = fit(3, ckpt_path=str(tmp_path / "first.ckpt"))
    assert resumed.seen == uninterrupted.seen[3:]
