from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qat.errors import ConfigError
from qat.training.schedule import Phase, Schedule, progress

LEARN, RANGES, NORMS = Phase


@pytest.mark.parametrize(
    ("observers", "norms", "batches", "expected"),
    [
        (0.5, 0.75, 4, [LEARN, LEARN, RANGES, NORMS]),
        (0.5, 0.75, 5, [LEARN, LEARN, LEARN, RANGES, NORMS]),  # 2/5 < 0.5 <= 3/5; 3/5 < 0.75 <= 4/5
        (0.6, 0.8, 5, [LEARN, LEARN, LEARN, RANGES, NORMS]),  # 3/5 and 4/5 are the very numbers 0.6 and 0.8
        (0.5, 0.5, 2, [LEARN, NORMS]),
        (0.0, 1.0, 3, [RANGES, RANGES, RANGES]),
        (0.0, 0.0, 2, [NORMS, NORMS]),
        (1.0, 1.0, 3, [LEARN, LEARN, LEARN]),
        (0.99, 1.0, 3, [LEARN, LEARN, LEARN]),
        (0.5, 1.0, 1, [LEARN]),
    ],
)
def test_phase_of_every_batch(observers: float, norms: float, batches: int, expected: list[Phase]) -> None:
    schedule = Schedule(freeze_observers_at=observers, freeze_bn_at=norms)
    seen = [schedule.phase(progress(epoch=0, batch=k, batches=batches, max_epochs=1)) for k in range(batches)]
    assert seen == expected


@pytest.mark.parametrize(
    ("observers", "norms"), [(0.9, 0.5), (-0.1, 0.5), (0.5, 1.1), (float("nan"), 1.0), (0.0, float("nan"))]
)
def test_shares_out_of_order_are_refused(observers: float, norms: float) -> None:
    message = f"need 0 <= freeze_observers_at <= freeze_bn_at <= 1, got {observers} and {norms}"
    with pytest.raises(ConfigError, match=message):
        Schedule(freeze_observers_at=observers, freeze_bn_at=norms)


@pytest.mark.parametrize(
    ("start", "batches", "expected"),
    [
        (0.0, 2, [True, True]),
        (0.25, 4, [False, True, True, True]),  # at, not after
        (0.3, 4, [False, False, True, True]),
        (0.6, 5, [False, False, False, True, True]),  # 3/5 is the very number 0.6
    ],
)
def test_batches_that_quantize_activations(start: float, batches: int, expected: list[bool]) -> None:
    schedule = Schedule(activations_from=start, freeze_observers_at=1, freeze_bn_at=1)
    shares = [progress(epoch=0, batch=k, batches=batches, max_epochs=1) for k in range(batches)]
    assert [schedule.quantizes_activations(share) for share in shares] == expected


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        (0.0, ["activations_from", "freeze_observers_at"]),  # freeze_bn_at=1 says never
        (0.25, ["freeze_observers_at"]),  # at, not after
        (0.5, []),
    ],
)
def test_shares_behind_the_last_progress(last: float, expected: list[str]) -> None:
    assert Schedule(activations_from=0.25, freeze_observers_at=0.5, freeze_bn_at=1).never_begun(last) == expected


@pytest.mark.parametrize(("start", "observers"), [(0.6, 0.5), (-0.1, 0.5), (1.0, 1.0), (float("nan"), 0.5)])
def test_activations_join_before_ranges_are_frozen(start: float, observers: float) -> None:
    message = (
        f"need 0 <= activations_from <= freeze_observers_at, and activations_from < 1, got {start} and {observers}"
    )
    with pytest.raises(ConfigError, match=message):
        Schedule(activations_from=start, freeze_observers_at=observers, freeze_bn_at=1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"epoch": 0, "batch": 0, "batches": 10, "max_epochs": 5}, 0.0),
        ({"epoch": 3, "batch": 0, "batches": 23, "max_epochs": 5}, 0.6),
        ({"epoch": 4, "batch": 22, "batches": 23, "max_epochs": 5}, 114 / 115),
        ({"epoch": 5, "batch": 0, "batches": 23, "max_epochs": 5}, 1.0),
        ({"epoch": 2, "batch": 7, "batches": float("inf"), "max_epochs": 4}, 0.5),  # a stream without length
        ({"epoch": 0, "batch": 7, "batches": 10, "max_epochs": -1, "step": 30, "max_steps": 40}, 0.75),
        ({"epoch": 0, "batch": 7, "batches": float("inf"), "max_epochs": None, "step": 1, "max_steps": 4}, 0.25),
        ({"epoch": 1, "batch": 0, "batches": 10, "max_epochs": 2, "step": 9, "max_steps": 10}, 0.9),  # the nearer limit
        ({"epoch": 9, "batch": 3, "batches": 10, "max_epochs": -1}, 0.0),  # no limit: ranges never freeze
    ],
)
def test_progress(arguments: dict[str, float], expected: float) -> None:
    assert progress(**arguments) == expected


@given(st.integers(1, 50), st.integers(1, 50), st.floats(0, 1), st.floats(0, 1))
def test_phases_only_go_forward(epochs: int, batches: int, one: float, other: float) -> None:
    schedule = Schedule(freeze_observers_at=min(one, other), freeze_bn_at=max(one, other))
    places = [(e, b) for e in range(epochs) for b in range(batches)]
    seen = [schedule.phase(progress(epoch=e, batch=b, batches=batches, max_epochs=epochs)) for e, b in places]
    assert [list(Phase).index(p) for p in seen] == sorted(list(Phase).index(p) for p in seen)
