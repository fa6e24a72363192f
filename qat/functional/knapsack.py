"""One option for every item at the least harm, under limits on what they cost together: a 0-1 integer program.

    minimize    sum_ij harm_ij x_ij
    subject to  sum_j x_ij = 1              for every item i
                sum_ij cost^k_ij x_ij <= B_k for every limit k
                x_ij in {0, 1}

Known as the multiple-choice knapsack (Sinha and Zoltners 1979). Solved exactly by HiGHS, through scipy.optimize.milp.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

Table = Sequence[Sequence[float]]  # [item][option]


def least_harm(harm: Table, limits: Sequence[tuple[Table, float]]) -> list[int]:
    """The option of every item.

    Args:
        harm: of each option, at least 0; items may have different numbers of options.
        limits: costs of each option, at least 0, with what they may be together.

    Raises:
        ValueError: no choice keeps to the limits.
    """
    counts = [len(options) for options in harm]
    flat = np.concatenate([np.asarray(options, dtype=float) for options in harm])
    one_each = np.repeat(np.eye(len(counts)), counts, axis=1)  # [items, options]
    constraints = [LinearConstraint(one_each, 1, 1)]
    for cost, limit in limits:
        row = np.concatenate([np.asarray(options, dtype=float) for options in cost])
        constraints.append(LinearConstraint(row[None] / limit, -np.inf, 1.0))  # near 1, where the solver is exact
    scale = flat.max() or 1.0
    found = milp(
        flat / scale, constraints=constraints, bounds=Bounds(0, 1), integrality=np.ones(len(flat)),
        options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    if found.x is None:
        raise ValueError(f"no choice keeps to the limits: {found.message}")
    ends = np.cumsum(counts)[:-1]
    return [int(np.argmax(options)) for options in np.split(found.x, ends)]
