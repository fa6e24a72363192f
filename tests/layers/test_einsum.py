from __future__ import annotations

import pytest
import torch

from qat.layers.einsum import is_matrix_product, matrix_product

SIZES = {"b": 2, "h": 3, "i": 4, "j": 5, "d": 6}
ROUNDING = 1e-6  # float32 sums of 6 products in another order


@pytest.mark.parametrize(
    "equation", ["bhid,bhjd->bhij", "bhij,bhjd->bhid", "bid,bjd->bji", "b h i d, b h j d -> b h i j", "dbi,jdb->bij"]
)
def test_equals_einsum(equation):
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    a, b = (torch.randn([SIZES[x] for x in term]) for term in terms)
    assert is_matrix_product(equation, a, b)
    torch.testing.assert_close(
        matrix_product(equation, a, b), torch.einsum(equation, a, b), rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize(
    ("equation", "count"),
    [("ij->ji", 1), ("ii,ij->j", 2), ("bi,bj->b", 2), ("bij,bjk->bi", 2), ("...i,ij->...j", 2), ("ij,jk,kl->il", 3)],
)
def test_other_sums_are_left_alone(equation, count):
    assert not is_matrix_product(equation, *[None] * count)
