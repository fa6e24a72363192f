from __future__ import annotations

import pytest

from qat.budget import Budget
from qat.errors import ConfigError


def test_a_number_is_for_both_and_a_mapping_for_what_it_names():
    assert Budget.parse(None) is None
    assert Budget.parse(5) == Budget(weight=5, activation=5)
    assert Budget.parse({"weight": 4.5}) == Budget(weight=4.5)
    assert Budget.parse({"activation": 6}, 0.2) == Budget(activation=6, weight_bytes=200_000)


@pytest.mark.parametrize(
    ("budget", "tensors", "told"),
    [
        (Budget(weight=5, activation=5.5), ("weight", "activation"), "mean bits 5 for weights and 5.5 for activations"),
        (Budget(weight_bytes=2e5), ("weight",), "weights of at most 0.2 MB"),
        (
            Budget(activation=4, weight_bytes=1e6),
            ("weight", "activation"),
            "mean bits 4 for activations, weights of at",
        ),
    ],
)
def test_what_it_limits(budget, tensors, told):
    assert budget.tensors == tensors
    assert str(budget).startswith(told)


@pytest.mark.parametrize(
    ("budget", "mb", "message"),
    [
        (1, None, r"need 2 <= quant.budget <= 8, mean bits, or \{weight: BITS, activation: BITS\}, got 1"),
        (9.5, None, r"need 2 <= quant.budget <= 8, .*, got 9.5"),
        ("five", None, r"need 2 <= quant.budget <= 8, .*, got 'five'"),
        (True, None, r"need 2 <= quant.budget <= 8, .*, got True"),
        ({"weight": None}, None, r"need 2 <= quant.budget <= 8, .*, got \{'weight': None\}"),
        ({"weights": 5}, None, r"unknown key of quant.budget 'weights'. Did you mean weight"),
        (None, 0, r"need quant.budget_mb > 0, megabytes of integer weights, got 0"),
        (None, "0.2MB", r"need quant.budget_mb > 0, .*, got '0.2MB'"),
    ],
)
def test_what_is_refused(budget, mb, message):
    with pytest.raises(ConfigError, match=message):
        Budget.parse(budget, mb)
