"""`torch.einsum` of two tensors as a matrix product, so that it can be quantized.

"bhid,bhjd->bhij"       b, h in all three: batch; d in both factors: summed; i, j in one factor: rows, columns
C = A' B'               A' [batch..., i, d], B' [batch..., d, j], by permutation of A, B; C permuted in the end
"""

from __future__ import annotations

import re
from typing import Any

import torch

TERMS = re.compile(r"([A-Za-z]+),([A-Za-z]+)->([A-Za-z]+)")


def _letters(equation: Any) -> tuple[str, str, str] | None:
    """The letters of both factors and the result, if they say one product: one row, column and summed letter."""
    found = TERMS.fullmatch(equation.replace(" ", "")) if isinstance(equation, str) else None
    if found is None:
        return None
    a, b, c = found.groups()
    rows, columns, summed = set(a) - set(b), set(b) - set(a), (set(a) & set(b)) - set(c)
    once = all(len(set(term)) == len(term) for term in (a, b, c))
    complete = set(c) == (set(a) | set(b)) - summed
    return (a, b, c) if once and complete and len(rows) == len(columns) == len(summed) == 1 else None


def is_matrix_product(equation: Any, *operands: Any) -> bool:
    """Whether `einsum(equation, *operands)` is one (batched) matrix product."""
    return len(operands) == 2 and _letters(equation) is not None


def matrix_product(equation: str, left: Any, right: Any) -> Any:
    """`einsum(equation, left, right)`, tensors or proxies of them; the equation passes `is_matrix_product`."""
    terms = _letters(equation)
    assert terms is not None
    a, b, c = terms
    batch = "".join(x for x in a if x in b and x in c)
    (row,), (column,), (summed,) = set(a) - set(b), set(b) - set(a), (set(a) & set(b)) - set(c)
    product = torch.matmul(_permuted(left, a, batch + row + summed), _permuted(right, b, batch + summed + column))
    return _permuted(product, batch + row + column, c)


def _permuted(x: Any, have: str, want: str) -> Any:
    return x if have == want else x.permute([have.index(letter) for letter in want])
