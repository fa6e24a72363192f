"""A classifier for Lightning: any network from images to logits, with its optimizer and schedule.

loss = cross entropy of logits [N, C] and labels [N]; in training also of auxiliary heads, weighted (outputs.py), and
       with a teacher its share (distillation.py); of blended images and labels with mixup (functional/mixup.py)
Logged: train/loss, val/loss, val/top1; top-1 as a share in 0 .. 1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics.classification import MulticlassAccuracy

from qat.errors import ConfigError
from qat.functional.mixup import draw_share, mixed
from qat.placement import quantizers
from qat.training.distillation import Distillation, require_teacher
from qat.training.features import FeatureTeacher, watched
from qat.training.finite import require_finite_loss
from qat.training.outputs import Outputs
from qat.training.warmup import with_warmup

Batch = tuple[Tensor, Tensor]
HORIZONS = ("total_steps", "T_max", "total_iters")  # how schedulers call the number of steps that they are planned for


class Classifier(pl.LightningModule):
    """Trains `model` to classify.

    Args:
        model: images [N, 3, H, W] to logits [N, C], alone or with others as `Outputs` sorts them.
        num_classes: C.
        optimizer: builds the optimizer from parameter groups, e.g. `partial(torch.optim.SGD, lr=0.1)`.
        scheduler: builds the learning rate schedule from the optimizer; None keeps the rate. One that is planned for a
            number of steps (`total_steps`, `T_max`, `total_iters`) is given that of the run and moves at every step,
            another one at every epoch.
        label_smoothing: share of the target that is spread over all classes.
        aux_weight: weight of each auxiliary head's loss; None takes that of the model's paper.
        distill: share of the teacher in the training loss; None learns from the labels alone.
        teacher: the float model, for `distill`; no part of this module, so in no checkpoint.
        scale_lr: learning rate of trained ranges; None for the optimizer's.
        mixup: the alpha of mixup; 0 trains on images as they are.
        warmup: share of the steps in which the rate rises, before the schedule begins (warmup.py).

    Raises:
        ConfigError: a value out of range; distillation without a float teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., Any] | None = None,
        label_smoothing: float = 0.0,
        aux_weight: float | None = None,
        distill: Distillation | None = None,
        teacher: nn.Module | None = None,
        scale_lr: float | None = None,
        mixup: float = 0.0,
        warmup: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"need 0 <= label_smoothing < 1, got {label_smoothing}")
        if aux_weight is not None and not aux_weight >= 0:
            raise ConfigError(f"need aux_weight >= 0, got {aux_weight}")
        if scale_lr is not None and not scale_lr >= 0:
            raise ConfigError(f"need scale_lr >= 0, got {scale_lr}; 0 keeps trained ranges as calibration set them")
        require_aids(mixup=mixup, warmup=warmup)
        self.scale_lr, self.mixup, self.warmup = scale_lr, mixup, warmup
        self.num_classes = num_classes
        self.model = model
        self.build_optimizer, self.build_scheduler = optimizer, scheduler
        self.label_smoothing, self.aux_weight = label_smoothing, aux_weight
        self.distill = distill
        # past nn.Module, which would train it, save it, and take it for a network to quantize
        self.__dict__["teacher"] = None if distill is None else require_teacher(teacher)
        self.__dict__["features"] = None  # the teacher's twin, once the student is prepared
        self.val_top1 = MulticlassAccuracy(num_classes, average="micro")
        self.test_top1 = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C]."""
        return self._outputs(images).logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; NaN and Inf end training here."""
        images, labels = batch
        if self.mixup and self.training:  # calibration runs this step in evaluation mode
            images, labels = mixed(images, labels, draw_share(self.mixup), self.num_classes)
        learns = self.distill is not None and self.distill.features and self.training  # not while it calibrates
        with watched(self.model, self.learn_features().paths if learns else ()) as seen:
            outputs = self._outputs(images)
        loss = F.cross_entropy(outputs.logits, labels, label_smoothing=self.label_smoothing)
        if self.distill is not None:
            logits, features = self._taught(images, features=bool(learns))
            loss = self.distill.loss(loss, outputs.logits, logits)
            if learns:
                loss = loss + self.distill.feature_weight * self.learn_features().loss(seen, features)
        for logits in outputs.auxiliary:
            weight = outputs.aux_weight if self.aux_weight is None else self.aux_weight
            loss = loss + weight * F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        require_finite_loss(loss, step=self.global_step, module=self, run=lambda: self(images))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        self._evaluate("val", self.val_top1, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count a batch."""
        self._evaluate("test", self.test_top1, batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logits [N, C]."""
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        """The optimizer over `parameter_groups`, with its schedule."""
        groups = parameter_groups(self.model, scale_lr=self.scale_lr)
        optimizer, scheduler, interval = self.optimization(groups, None)
        if scheduler is None:
            return optimizer
        config = {"scheduler": scheduler, "interval": interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = "val/loss"
        return {"optimizer": optimizer, "lr_scheduler": config}

    def optimization(self, groups: list[dict[str, Any]], steps: int | None) -> tuple[Optimizer, Any, str]:
        """Optimizer, schedule (None for none), and whether that moves at every `step` or `epoch`.

        Args:
            groups: of parameters.
            steps: of the run; None asks the Trainer.

        Raises:
            ConfigError: a schedule that needs an end, and a run without one; a schedule with one rate for all, and
                `scale_lr`.
        """
        optimizer = self.build_optimizer(groups)
        horizon, planned = self._plan(steps)
        if self.warmup:
            scheduler = with_warmup(self.build_scheduler, optimizer, self.warmup, horizon, planned)
        elif self.build_scheduler is not None:
            scheduler = self.build_scheduler(optimizer, **({} if horizon is None else {horizon: planned}))
        else:
            return optimizer, None, "epoch"
        if self.scale_lr is not None and any("max_lr" in group for group in optimizer.param_groups):
            raise ConfigError(
                f"{type(scheduler).__name__} sets one rate for all parameters, and scale_lr={self.scale_lr} another "
                "for some; use torch.optim.lr_scheduler.CosineAnnealingLR, or leave scale_lr out"
            )
        return optimizer, scheduler, "step" if planned else "epoch"

    def _outputs(self, images: Tensor) -> Outputs:
        return Outputs.of(self.model(images), type(self.model).__name__)

    def learn_features(self) -> FeatureTeacher:
        """The teacher of features, made for the prepared network when it is first asked for.

        Raises:
            ConfigError: no teacher or features; the network is not prepared, or calls no such module.
        """
        if self.distill is None or not self.distill.features:
            raise ConfigError("there are no features to learn; give distill.features=[NAME, ...]")
        if self.__dict__["features"] is None:
            self.__dict__["features"] = FeatureTeacher(self.model, self.__dict__["teacher"], self.distill.features)
        return cast(FeatureTeacher, self.__dict__["features"])

    def _taught(self, images: Tensor, *, features: bool) -> tuple[Tensor, list[Tensor]]:
        """The teacher's logits [N, C], and its features."""
        if features:
            returned, seen = self.learn_features().taught(images)
            return Outputs.of(returned, type(self.__dict__["teacher"]).__name__).logits, seen
        teacher = self.__dict__["teacher"].to(images.device)
        with torch.no_grad():
            return Outputs.of(teacher(images), type(teacher).__name__).logits, []

    def _plan(self, steps: float | None) -> tuple[str | None, int]:
        """What the schedule calls the number of steps that it is planned for, and that number; None and 0 for none."""
        build: Any = self.build_scheduler
        takes = {} if build is None else inspect.signature(getattr(build, "func", build)).parameters
        name = next((n for n in HORIZONS if n in takes), None)
        if name is None and not self.warmup:
            return None, 0
        given = build.keywords.get(name or "") if isinstance(build, partial) else None
        steps = given if given is not None else self.trainer.estimated_stepping_batches if steps is None else steps
        if not math.isfinite(steps) or steps < 1:
            raise ConfigError(
                f"the schedule needs the number of steps, and the run has {steps}; set trainer.max_epochs or "
                f"trainer.max_steps, or scheduler.{name or 'T_max'}"
            )
        return name, int(steps)

    def _evaluate(self, stage: str, top1: MulticlassAccuracy, batch: Batch) -> None:
        images, labels = batch
        logits = self(images)
        top1.update(logits, labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), prog_bar=True, sync_dist=True)
        self.log(f"{stage}/top1", top1, prog_bar=True)


def require_aids(*, mixup: float, warmup: float) -> None:
    """Raise `ConfigError` for values out of range."""
    if not 0 <= mixup < math.inf:
        raise ConfigError(f"need mixup >= 0, got {mixup}; 0.2 is usual, 0 is none")
    if not 0 <= warmup < 1:
        raise ConfigError(f"need 0 <= warmup < 1, a share of the steps, got {warmup}; 0.05 is usual, 0 is none")


def parameter_groups(model: nn.Module, *, scale_lr: float | None = None) -> list[dict[str, Any]]:
    """Parameters of `model`, and apart those of one value a channel, which do not decay: biases, BatchNorm, scales.

    Args:
        model: a network, prepared or not.
        scale_lr: learning rate of trained ranges, then a group of their own; None leaves them among the others.

    Raises:
        ConfigError: a rate for trained ranges, and a network that has none.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    scales = {id(p) for q in quantizers(model).values() for p in q.parameters()} if scale_lr is not None else set()
    if scale_lr is not None and not scales:
        raise ConfigError(
            f"scale_lr={scale_lr} has no effect: no range of {type(model).__name__} is trained. Use a recipe with LSQ "
            "or PACT, or leave it out"
        )
    others = [p for p in trained if id(p) not in scales]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.ndim > 1]},
        {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in scales], "weight_decay": 0.0, "lr": scale_lr},
    ]
    return [group for group in groups if group["params"]]
