"""Training with Lightning: the callback for any LightningModule, a classifier, and the schedule.

networks, calls, batches   where a stranger's project keeps its network, what it feeds it, and from which data
schedule                   progress -> phase, pure
preparation, resumption,   what the callback does: before the optimizers are built, before a checkpoint is loaded,
delivery, finishing        and when fit has ended
oscillation, averaging,    aids that stand beside the callback
reestimation
stopping, position         Ctrl-C and SIGTERM: where training stands, and how it goes on there
strategy, processes        several processes: what DDP must know, and how they begin, decide and end alike
"""

from qat.training.averaging import AveragedWeights
from qat.training.backbone import FrozenBackbone
from qat.training.baseline import cached_baseline
from qat.training.callback import QuantizationAwareTraining
from qat.training.checkpoint_io import CarefulCheckpointIO, require_training_state
from qat.training.classifier import Classifier
from qat.training.distillation import Distillation
from qat.training.interruption import Interrupted, held, interruptible, run_to_resume
from qat.training.oscillation import OscillationControl
from qat.training.reestimation import ReestimatedBatchNorm
from qat.training.reseed import SeedEveryEpoch
from qat.training.schedule import Phase, Schedule
from qat.training.stopping import SafeStop
from qat.training.trial import require_classifier

__all__ = [
    "AveragedWeights",
    "CarefulCheckpointIO",
    "Classifier",
    "Distillation",
    "FrozenBackbone",
    "Interrupted",
    "OscillationControl",
    "Phase",
    "QuantizationAwareTraining",
    "ReestimatedBatchNorm",
    "SafeStop",
    "Schedule",
    "SeedEveryEpoch",
    "cached_baseline",
    "held",
    "interruptible",
    "require_classifier",
    "require_training_state",
    "run_to_resume",
]
