"""Takes down, while a run still has its models, what its report will need: see `qat/report/record.py`."""

from qat.recorder.layers import record_layers

__all__ = ["record_layers"]
