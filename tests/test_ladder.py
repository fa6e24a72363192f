"""Stages whose outputs are known: what the table says follows by hand."""

from __future__ import annotations

import pytest
import torch

from qat.errors import DataError
from qat.ladder import ladder

STAGES = {
    "float": lambda x: x.args[0],
    "reference": lambda x: x.args[0] + 1.0,
    "runtime": lambda x: x.args[0].flip(1) + 3.0,
}
X = torch.tensor([[0.0, 1.0], [4.0, 2.0]])


def test_each_stage_is_compared_with_the_base_and_with_the_one_before():
    report = ladder(STAGES, [(X, torch.tensor([1, 0]))], base="reference", free=("float",))
    first, base, last = report.stages
    assert (first.agreement, first.mean_steps) == (100.0, 1.0)
    assert (first.agreement_before, first.mean_steps_before) == (None, None)
    assert (base.agreement, base.mean_steps) == (100.0, 0.0)
    assert (base.agreement_before, base.mean_steps_before) == (100.0, 1.0)
    # flipped: every class is the other one; |1 + 2|, |-1 + 2|, |-2 + 2|, |2 + 2|
    assert (last.agreement_before, last.mean_steps_before) == (0.0, 2.0)
    assert (last.top1, last.max_steps) == (0.0, 4.0)


def test_no_batch():
    with pytest.raises(DataError, match="verification saw no batch"):
        ladder(STAGES, [], base="float")
