"""Image data: what every data set here is to the training code, a LightningDataModule of image batches.

A batch is (images, labels): normalised float32 [N, 3, H, W] and int64 [N].

    loader          rows            transform     order
    train           training        training      a function of (seed, epoch)
    calibration     training        evaluation    one shuffle, a function of the seed
    val/test/...    validation      evaluation    as stored
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from qat.data.checks import at_least
from qat.data.images import ImageBatches, as_batch, check_labels
from qat.data.sampler import EpochSampler, LateLoader
from qat.data.streams import Stream, stream_seed

Batches = DataLoader[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What a data set hands over once it is read.

    Attributes:
        train: Training rows under the training transform.
        calibration: The same rows under the evaluation transform.
        val: Held-out rows under the evaluation transform.
        class_names: The name of every class, by label.
        input_shape: (C, H, W) of one image.
    """

    train: ImageBatches
    calibration: ImageBatches
    val: ImageBatches
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        """Refuse an empty split and labels that are no class."""
        check_labels(self.train.labels, len(self.class_names), "the training split")
        check_labels(self.val.labels, len(self.class_names), "the validation split")


class ImageData(pl.LightningDataModule, ABC):
    """Base of the data sets: a subclass says how to `load`, this class how to iterate.

    Args:
        batch_size: Images in a batch, for each process.
        num_workers: Processes that read ahead; 0 reads in the training process. The batches are the same either way.
        seed: Decides the order, the augmentation and the calibration images; never the split.

    Raises:
        ConfigError: A value out of range.
    """

    def __init__(self, *, batch_size: int, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size = at_least("batch_size", batch_size, 1)
        self.num_workers = at_least("num_workers", num_workers, 0)
        self.seed = at_least("seed", seed, 0)
        self._splits: Splits | None = None

    @abstractmethod
    def load(self) -> Splits:
        """Read what must be read before the first batch.

        Raises:
            DataError: It is not there, or not what it should be.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load, at the first call; `stage` is Lightning's and makes no difference."""
        if self._splits is None:
            self._splits = self.load()

    @property
    def splits(self) -> Splits:
        """What `load` returned; needs `setup()`."""
        if self._splits is None:
            raise RuntimeError(f"call {type(self).__name__}.setup() before using its data")
        return self._splits

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of every class, by label."""
        return self.splits.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes, seen or not."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        return self.splits.input_shape

    def train_dataloader(self) -> Batches:
        """Training batches; call `loader.sampler.set_epoch(epoch)` where Lightning does not."""
        dataset = self.splits.train
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = EpochSampler(dataset, seed=self.seed, num_replicas=replicas, rank=rank)
        # BatchNorm over one image of 1 x 1 has no variance and raises: leave out a last batch of one, another image
        # in every epoch. Larger remainders are kept, and so is a batch of one that is all there is.
        lone_image = self.batch_size > 1 and len(sampler) > 1 and len(sampler) % self.batch_size == 1
        return LateLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=lone_image,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=as_batch,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own, because a DataLoader draws from the global one at every start
        )

    def calibration_dataloader(self) -> Batches:
        """All training images without augmentation, in one shuffled order: the first batches are a fair sample."""
        dataset = self.splits.calibration
        generator = torch.Generator().manual_seed(stream_seed(Stream.CALIBRATION, self.seed))
        return self._in_order(Subset(dataset, torch.randperm(len(dataset), generator=generator).tolist()))

    def val_dataloader(self) -> Batches:
        """Validation batches, in the order of the data set."""
        return self._in_order(self.splits.val)

    def test_dataloader(self) -> Batches:
        """The validation batches: there is no third split."""
        return self.val_dataloader()

    def predict_dataloader(self) -> Batches:
        """The validation batches: there is no third split."""
        return self.val_dataloader()

    def _in_order(self, dataset: ImageBatches | Subset[tuple[Tensor, Tensor]]) -> Batches:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=as_batch,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )
