"""Stages whose outputs are known: what the table says follows by hand."""

from __future__ import annotations

import pytest
import torch

from qat.errors import DataError
from qat.ladder import compare, ladder

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


def test_a_class_at_every_place():
    base = torch.zeros(2, 3, 4, 4)
    base[:, 0] = 1.0
    other = base.clone()
    other[:, 1, 0] = 2.0  # a quarter of the places
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    stages = {"reference": lambda x: x.args[0], "runtime": lambda x: other}
    first, last = ladder(stages, [(base, labels)], base="reference").stages
    assert (first.agreement, first.top1) == (100.0, 100.0)
    assert (last.agreement, last.top1) == (75.0, 75.0)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_without_classes_the_value_counts(shape):
    base = torch.tensor([1.0, -2.0, 10.0, 4.0]).view(shape)
    off = base + torch.tensor([0.0, 0.4, 3.0, -0.6]).view(shape)  # a twentieth of 10 is 0.5
    stages = {"reference": lambda x: x.args[0], "runtime": lambda x: off}
    _, last = compare(stages, [(base, torch.tensor([0, 1, 1, 0]))], base="reference", step=0.01).stages
    assert (last.agreement, last.top1) == (50.0, None)
    _, coarse = compare(stages, [base], base="reference", step=0.31).stages
    assert coarse.agreement == 75.0  # 0.6 is two steps
