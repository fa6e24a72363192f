"""From a float model to its fake-quant copy: capture, roles, sites, plan, prepare."""

from qat.placement.plan import Plan, PlannedOp
from qat.placement.prepare import PLACEMENTS, prepare
from qat.placement.prepared import PreparedModel, quantizers

__all__ = ["PLACEMENTS", "Plan", "PlannedOp", "PreparedModel", "prepare", "quantizers"]
