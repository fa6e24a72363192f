"""Settings and defaults in a call of the prepared model: as the float model takes them, but not with another value."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.errors import CaptureError


class Settings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.numbers, self.head = nn.Conv2d(1, 8, 3), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, as_dict: bool, m: Tensor | None = None, *, scale: float = 1.0) -> Any:
        features = self.conv(x).relu().mean((2, 3)) * scale
        if m is not None:
            features = features + self.numbers(m)
        return {"logits": self.head(features)} if as_dict else self.head(features)


X, M = torch.randn(2, 1, 8, 8), torch.randn(2, 3)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X, False), {}),
        ((X, False, None), {}),
        ((X, False, None), {"scale": 1}),
        ((X,), {"as_dict": False, "m": None, "scale": 1.0}),
        ((X, True, M), {}),
        ((X,), {"as_dict": True, "m": M}),
        ((X, True), {"m": M}),
    ],
)
def test_the_prepared_model_is_called_like_the_float_one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    model = Settings().eval()
    prepared = qat.prepare(model, args, example_kwargs=kwargs)
    qat.fake_quant(prepared, enabled=False)
    for one in (prepared, copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        mine, theirs = one(*args, **kwargs), model(*args, **kwargs)
        assert type(mine) is type(theirs)
        torch.testing.assert_close(mine, theirs)
    assert not any(x is None or isinstance(x, bool) for x in prepared.example_inputs)


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        ((X, True), {}, r"captured with as_dict=False and is called with as_dict=True: .*inputs that say so"),
        ((X, 0), {}, "as_dict=0"),
        ((X, False, M), {}, r"m=None and is called with m=a tensor \[2, 3\]"),
        ((X, False), {"scale": 2.0}, r"scale=1\.0 and is called with scale=2\.0"),
        ((X, False), {"scale": True}, "scale=True"),
    ],
)
def test_another_value_is_refused(args: tuple[Any, ...], kwargs: dict[str, Any], match: str) -> None:
    prepared = qat.prepare(Settings().eval(), (X, False))
    with pytest.raises(CaptureError, match=match):
        prepared(*args, **kwargs)


class Entries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, batch: dict[str, Any]) -> Any:
        features = self.conv(batch["image"]).relu().mean((2, 3))
        if batch.get("mask") is not None:
            features = features * batch["mask"]
        return features if batch["options"]["pooled"] else self.head(features)


def test_settings_in_a_dict() -> None:
    def batch(mask: Any = None, **options: bool) -> dict[str, Any]:
        return {"image": X, "name": ["a.png", "b.png"], "mask": mask, "options": options}

    model = Entries().eval()
    prepared = qat.prepare(model, (batch(pooled=False),))
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(batch(pooled=False)), model(batch(pooled=False)))
    prepared({**batch(pooled=False), "name": ["c.png"]})  # nobody reads it
    with pytest.raises(CaptureError, match=r"batch\['options'\]\['pooled'\]=False and is called with .*=True"):
        prepared(batch(pooled=True))
    with pytest.raises(CaptureError, match=r"batch\['options'\]\['pooled'\]=False and is called with .*=Ellipsis"):
        prepared(batch())
    with pytest.raises(CaptureError, match=r"batch\['mask'\]=None and is called with batch\['mask'\]=a tensor"):
        prepared(batch(mask=torch.ones(2, 8), pooled=False))
