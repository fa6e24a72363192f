"""Takes down, while a run still has its models, what its report will need: see `qat/report/record.py`."""

from qat.recorder.classes import record_classes
from qat.recorder.layers import record_layers, record_plan
from qat.recorder.origin import record_run
from qat.recorder.training import TrainingRecorder

__all__ = ["TrainingRecorder", "record_classes", "record_layers", "record_plan", "record_run"]
