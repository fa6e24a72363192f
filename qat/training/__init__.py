"""Training with Lightning: the callback for any LightningModule, a classifier, and the schedule.

networks, calls, batches   where a stranger's project keeps its network, what it feeds it, and from which data
schedule                   progress -> phase, pure
"""

from qat.training.backbone import FrozenBackbone
from qat.training.baseline import cached_baseline
from qat.training.callback import QuantizationAwareTraining
from qat.training.classifier import Classifier
from qat.training.reseed import SeedEveryEpoch
from qat.training.schedule import Phase, Schedule
from qat.training.trial import require_classifier

__all__ = [
    "Classifier",
    "FrozenBackbone",
    "Phase",
    "QuantizationAwareTraining",
    "Schedule",
    "SeedEveryEpoch",
    "cached_baseline",
    "require_classifier",
]
