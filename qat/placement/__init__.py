"""From a float model to its fake-quant copy: capture, roles, sites, plan, prepare."""

from qat.placement.plan import Plan, PlannedOp
from qat.placement.prepare import prepare
from qat.placement.prepared import PreparedModel, quantizers

__all__ = ["Plan", "PlannedOp", "PreparedModel", "prepare", "quantizers"]
