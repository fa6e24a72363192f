from __future__ import annotations

import pytest

from qat.data.augmentation import Augmentation
from qat.data.checks import at_least, member
from qat.errors import ConfigError


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "8", None])
def test_at_least_refuses(value: object):
    with pytest.raises(ConfigError, match=rf"data\.batch_size must be an integer >= 1, got {value!r}"):
        at_least("batch_size", value, 1)  # type: ignore[arg-type]


def test_at_least_accepts_its_bound():
    assert at_least("seed", 0, 0) == 0


def test_member_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown data\.augmentation 'crop_flp'\. Did you mean crop_flip"):
        member(Augmentation, "augmentation", "crop_flp")
