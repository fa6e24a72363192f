from __future__ import annotations

import pytest

from qat.errors import PlacementError
from qat.placement.rules import excluded, matching

NAMES = ["x", "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.0.add", "layer10.0.conv1", "fc"]


@pytest.mark.parametrize(
    ("pattern", "hits"),
    [
        ("fc", {"fc"}),
        ("conv1", {"conv1"}),
        ("*.conv1", {"layer1.0.conv1", "layer10.0.conv1"}),
        ("layer1", {"layer1.0.conv1", "layer1.0.conv2", "layer1.0.add"}),
        ("layer1.*", {"layer1.0.conv1", "layer1.0.conv2", "layer1.0.add"}),
        ("layer1*", {"layer1.0.conv1", "layer1.0.conv2", "layer1.0.add", "layer10.0.conv1"}),
        ("layer1.0.conv[12]", {"layer1.0.conv1", "layer1.0.conv2"}),
        ("*", set(NAMES)),
        ("Conv1", set()),
        ("", set()),
    ],
)
def test_a_pattern_means_a_name_and_everything_below_it(pattern, hits):
    assert matching(pattern, NAMES) == hits


def test_the_first_pattern_that_matches_is_the_reason():
    assert excluded(["layer1", "*.conv1"], NAMES) == {
        "layer1.0.conv1": "layer1",
        "layer1.0.conv2": "layer1",
        "layer1.0.add": "layer1",
        "layer10.0.conv1": "*.conv1",
    }


def test_no_pattern_excludes_nothing():
    assert excluded([], NAMES) == {}


def test_useless_patterns_fail_together_with_the_nearest_names():
    with pytest.raises(PlacementError, match=r"match no operator of the model:\n  'fcc' \(nearest: fc\)\n  '@@'\n"):
        excluded(["fcc", "conv1", "@@"], NAMES)
