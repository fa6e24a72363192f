from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qat.errors import NumericsError
from qat.training.finite import first_not_finite, require_finite_loss


class Log(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x)


class Between(nn.Module):
    """Breaks in its own code, between two layers that are innocent."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) / 0.0)


def poisoned() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))
    with torch.no_grad():
        net[1][1].weight[0, 0] = float("nan")
    return net


@pytest.mark.parametrize(
    ("build", "x", "expected"),
    [
        (poisoned, torch.ones(1, 2), r"the output of '1.1' (its weight)"),
        (lambda: nn.Sequential(nn.Identity(), Log()), -torch.ones(1, 2), "the output of '1'"),
        (lambda: nn.Sequential(Between()), torch.ones(1, 2), "'0', before it calls '0.second'"),
        (lambda: nn.Sequential(nn.ReLU()), torch.full((1, 2), float("inf")), "the input of '0', which no module"),
        (lambda: nn.Sequential(nn.ReLU()), torch.ones(1, 2), None),
    ],
)
def test_the_first_in_order_of_execution(build: Callable[[], nn.Module], x: Tensor, expected: str | None) -> None:
    net = build()
    found = first_not_finite(net, lambda: net(x))
    assert (found or "").startswith(expected or "")
    assert (found is None) == (expected is None)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_finite_loss_costs_no_second_run() -> None:
    require_finite_loss(torch.tensor(1.0), step=0, module=nn.Identity(), run=lambda: pytest.fail("ran again"))


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_the_error_names_step_and_module(value: str) -> None:
    net = poisoned()
    with pytest.raises(NumericsError, match=rf"loss is {value} at step 7; first not finite: the output of '1\.1'"):
        require_finite_loss(torch.tensor(float(value)), step=7, module=net, run=lambda: net(torch.ones(1, 2)))


def test_a_step_that_cannot_be_repeated_is_named_all_the_same() -> None:
    with pytest.raises(NumericsError, match="step 3; first not finite: no module's output, so look at the loss"):
        require_finite_loss(torch.tensor(float("nan")), step=3, module=nn.Identity(), run=lambda: 1 / 0)
