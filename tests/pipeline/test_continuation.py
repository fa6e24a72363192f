from __future__ import annotations

import pytest

from qat.pipeline.continuation import same

THEN = {"seed": 0, "qat": {"epochs": 5, "lr": 0.1}, "data": {"mean": [0.5]}, "also": []}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (THEN, True),
        ({**THEN, "data": {"mean": None}}, True),  # the run filled it in
        ({**THEN, "seed": 1}, False),
        ({**THEN, "qat": {"epochs": 5, "lr": 0.2}}, False),
        ({**THEN, "qat": {"epochs": 5, "lr": 0.1, "new": 1}}, False),
        ({**THEN, "also": ["openvino"]}, False),
    ],
)
def test_a_job_is_the_same_where_its_settings_are(now, expected):
    assert same(now, THEN) is expected
