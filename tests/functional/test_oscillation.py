from __future__ import annotations

import pytest
import torch

from qat.functional.oscillation import Oscillation, damping_loss, follow, freeze_


def test_damping_is_the_distance_to_the_grid_and_pulls_there():
    s = torch.tensor([[0.5], [0.1]])
    w = torch.tensor([[0.6, -0.2, 9.0], [0.04, 0.0, -5.0]], requires_grad=True)
    quantized = torch.round(w / s).clamp(-3, 3) * s
    loss = damping_loss(w, quantized, s, -3, 3)
    loss.backward()
    q = quantized.detach()
    inside = torch.tensor([[True, True, False], [True, True, False]])
    assert float(loss.detach()) == pytest.approx(float((w - q).detach().square()[inside].sum()))
    torch.testing.assert_close(w.grad, torch.where(inside, 2 * (w - q).detach(), torch.zeros(2, 3)))


def test_a_change_back_is_an_oscillation_and_a_change_on_is_none():
    state = Oscillation.start(torch.tensor([0, 0, 0]))
    paths = torch.tensor([[1, 1, 0], [0, 2, 0], [1, 3, 0], [0, 3, 1]])  # back and forth, onwards, once
    frequencies = []
    for q in paths:
        state = follow(state, q, momentum=0.5, threshold=1.0)
        frequencies.append(state.frequency.tolist())
    assert frequencies == [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.75, 0.0, 0.0], [0.875, 0.0, 0.0]]
    assert not state.frozen.any()
    assert state.direction.tolist() == [-1.0, 1.0, 1.0]


def test_the_direction_is_remembered_through_steps_without_a_change():
    state = Oscillation.start(torch.tensor([0]))
    for q in (1, 1, 1, 0):
        state = follow(state, torch.tensor([q]), momentum=0.5, threshold=1.0)
    assert state.frequency == 0.5


def test_frozen_weights_stay_at_their_average_integer():
    state = Oscillation.start(torch.tensor([1, 0]))
    for q in ([0, 0], [1, 1], [0, 2], [1, 3]):
        state = follow(state, torch.tensor(q), momentum=0.5, threshold=0.8)
    assert state.frozen.tolist() == [True, False]
    average = state.average.clone()
    assert float(average[0]) == 0.6875  # 1, then 0, 1, 0, 1 at a half each
    w, s = torch.tensor([0.149, 0.3]), torch.tensor(0.1)
    freeze_(w, state, s)
    assert w.tolist() == pytest.approx([0.1, 0.3])
    for _ in range(9):  # it is not unfrozen, and its average does not move
        state = follow(state, torch.tensor([7, 3]), momentum=0.5, threshold=0.8)
    assert state.frozen[0]
    assert state.average[0] == average[0]
