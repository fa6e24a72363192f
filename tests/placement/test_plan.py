from __future__ import annotations

import dataclasses

import pytest

from qat.placement import Plan, PlannedOp

CONV = PlannedOp(
    name="conv", kind="conv2d 3->8 k3", integer=True, fused=("relu",), weight="int7", output="uint8", macs=90
)
POOL = PlannedOp(name="pool", kind="maxpool2d", integer=True)
GATE = PlannedOp(name="block.gate", kind="sigmoid", integer=False, why="no integer kernel is known for it", macs=10)
PLAN = Plan(
    model="Net",
    recipe="w8a8",
    target="onnxruntime",
    ops=(CONV, POOL, GATE),
    grids=(("weights", "int7[-63,63] symmetric per_channel"),),
    notes=("weights: 8 -> 7 bits, because",),
)

TEXT = """\
model Net, recipe w8a8, target onnxruntime
2 of 3 operators and 90.00 % of multiply-accumulates in integers
weights: int7[-63,63] symmetric per_channel
weights: 8 -> 7 bits, because

int    conv        weight int7  -> uint8              conv2d 3->8 k3 + relu
int    pool                     -> grid of its input  maxpool2d
float  block.gate                                     sigmoid  because no integer kernel is known for it
"""


def test_text():
    assert str(PLAN) == TEXT


def test_share_of_multiply_accumulates():
    assert PLAN.int8_mac_share == 0.9
    assert Plan(model="", recipe="", target="", ops=()).int8_mac_share == 0.0


def test_what_is_left_in_float():
    assert PLAN.in_float == (GATE,)


def test_a_plan_is_a_value():
    assert dataclasses.replace(PLAN, model="Net") == PLAN
    with pytest.raises(dataclasses.FrozenInstanceError, match="model"):
        PLAN.model = "Other"
