"""The loss and its gradient against their closed form."""

from __future__ import annotations

import pytest
import torch

from qat.functional.distillation import distillation_loss, feature_loss


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_loss_and_gradient_are_the_closed_form(temperature):
    student = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    p, q = ((logits / temperature).softmax(1) for logits in (teacher, student))
    loss = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(loss, temperature**2 * (p * (p / q).log()).sum(1).mean())
    loss.backward()
    torch.testing.assert_close(student.grad, (temperature * (q - p) / 6).detach())
    assert teacher.grad is None


def test_nothing_to_learn_from_an_equal():
    logits = torch.randn(3, 4, dtype=torch.float64)
    assert abs(float(distillation_loss(logits, logits + 7, 2.0))) < 1e-12  # softmax ignores a constant; 1e-12: rounding


def test_features_and_their_gradient_are_the_closed_form():
    student = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    loss = feature_loss(student, teacher)
    power = teacher.square().sum()
    torch.testing.assert_close(loss, (student - teacher).square().sum() / power)
    loss.backward()
    torch.testing.assert_close(student.grad, (2 * (student - teacher) / power).detach())
    assert teacher.grad is None


def test_a_dead_feature_divides_by_no_zero():
    student = torch.zeros(2, 3, requires_grad=True)
    feature_loss(student, torch.zeros(2, 3)).backward()
    assert student.grad.isfinite().all()
