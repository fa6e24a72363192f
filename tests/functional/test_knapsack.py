"""The integer program against every choice there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qat.functional.knapsack import least_harm


def brute_force(harm, limits):
    best, at = float("inf"), None
    for pick in itertools.product(*(range(len(options)) for options in harm)):
        if all(sum(c[i][j] for i, j in enumerate(pick)) <= limit for c, limit in limits):
            total = sum(harm[i][j] for i, j in enumerate(pick))
            if total < best:
                best, at = total, list(pick)
    return best, at


@pytest.mark.parametrize("seed", range(12))
def test_it_finds_what_trying_everything_finds(seed):
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, 4, size=7)
    sizes = generator.integers(1, 2000, size=7)
    bits = [sorted(generator.choice([2, 3, 4, 5, 6, 7, 8], size=n, replace=False).tolist()) for n in counts]
    harm = [[float(generator.uniform(0.5, 2.0) * 4.0**-b) for b in options] for options in bits]
    cost = [[int(n) * b for b in options] for n, options in zip(sizes, bits, strict=True)]
    packed = [[int(n) // 2 if b <= 4 else int(n) for b in options] for n, options in zip(sizes, bits, strict=True)]
    limits = [(table, generator.uniform(sum(map(min, table)), sum(map(max, table)) + 1.0)) for table in (cost, packed)]
    best, at = brute_force(harm, limits)
    if at is None:  # each limit can be met, both together cannot
        with pytest.raises(ValueError, match="no choice keeps to the limits"):
            least_harm(harm, limits)
        return
    found = least_harm(harm, limits)
    assert sum(harm[i][j] for i, j in enumerate(found)) == pytest.approx(best, rel=1e-9)


def test_without_a_limit_each_takes_its_best():
    assert least_harm([[3.0, 1.0], [0.0, 2.0, 5.0]], []) == [1, 0]


def test_harm_of_nothing_is_no_division_by_zero():
    assert least_harm([[0.0, 0.0]], [([[1.0, 5.0]], 2.0)]) == [0]


def test_what_cannot_be_met():
    with pytest.raises(ValueError, match="no choice keeps to the limits"):
        least_harm([[1.0, 0.0]], [([[4.0, 8.0]], 3.0)])
