from __future__ import annotations

import pytest
import torch

from qat.functional.mixup import draw_share, mixed


def test_images_and_labels_mix_with_their_neighbours_in_the_same_shares():
    images, labels = torch.tensor([[0.0, 4.0], [8.0, 0.0], [4.0, 4.0]]), torch.tensor([0, 2, 2])
    x, y = mixed(images, labels, 0.75, 3)
    assert x.tolist() == [[1.0, 4.0], [6.0, 1.0], [5.0, 3.0]]  # 0 with 2, 1 with 0, 2 with 1
    assert y.tolist() == [[0.75, 0.0, 0.25], [0.25, 0.0, 0.75], [0.0, 0.0, 1.0]]


def test_a_share_of_one_leaves_everything():
    images, labels = torch.randn(4, 3, 2, 2), torch.arange(4)
    x, y = mixed(images, labels, 1.0, 4)
    assert torch.equal(x, images)
    assert torch.equal(y, torch.eye(4))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_the_distribution_and_follow_the_seed(alpha):
    torch.manual_seed(0)
    shares = torch.tensor([draw_share(alpha) for _ in range(4000)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)
    torch.manual_seed(0)
    assert draw_share(alpha) == float(shares[0])
