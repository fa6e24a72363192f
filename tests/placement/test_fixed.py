"""Settings and defaults in a call of the prepared model: as the float model takes them, but not with another value."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
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
    with pytest.raises(CaptureError, match=r"\['pooled'\]=False and is called with no batch\['options'\]"):
        prepared(batch())
    with pytest.raises(CaptureError, match=r"batch\['mask'\]=None and is called with batch\['mask'\]=a tensor"):
        prepared(batch(mask=torch.ones(2, 8), pooled=False))


class Looks(nn.Module):
    """What forward does with its inputs, given as a function."""

    def __init__(self, forward: Any, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm, self._forward = nn.Conv2d(1, 8, 3), norm(8), forward

    def forward(self, batch: Any) -> Tensor:
        return self._forward(lambda x: self.norm(self.conv(x)).relu().mean((2, 3)), batch)


def if_meta(layers: Any, batch: dict[str, Tensor]) -> Tensor:
    features = layers(batch["image"])
    return features * 2 if "meta" in batch else features


def all_of(layers: Any, batch: dict[str, Tensor]) -> Tensor:
    return sum(layers(x) for x in batch.values())  # type: ignore[return-value]


def each(layers: Any, batch: list[Tensor]) -> Tensor:
    return sum(layers(x) for x in batch)  # type: ignore[return-value]


def image(layers: Any, batch: dict[str, Any]) -> Tensor:
    return layers(batch["image"])


def stacked(layers: Any, batch: list[Tensor]) -> Tensor:
    return layers(torch.stack(batch))


def written(layers: Any, batch: dict[str, Any]) -> Tensor:
    batch.update(image=batch.pop("image") * 2)
    batch.setdefault("more", batch.get("image"))
    return layers(batch["image"]) + layers(batch["more"])


@pytest.mark.parametrize(
    ("forward", "example", "other", "match"),
    [
        (if_meta, {"image": X}, {"image": X, "meta": M}, r"with no batch\['meta'\] and is called with batch\['meta'\]"),
        (if_meta, {"image": X, "meta": M}, {"image": X}, r"with batch\['meta'\] and is called with no batch\['meta'\]"),
        (image, {"image": X}, {"picture": X}, r"with batch\['image'\] and is called with no"),
        (
            all_of,
            {"a": X, "b": X},
            {"a": X, "b": X, "c": X},
            r"the keys 'a', 'b' in batch and .* with 'a', 'b', 'c'",
        ),
        (each, [X, X], [X, X, X], "with 2 entries in batch and is called with 3"),
        (each, [X, X], [X], "with 2 entries in batch and is called with 1"),
        (each, (X, X), X, r"with 2 entries in batch and is called with a tensor \[2, 1, 8, 8\]"),
    ],
)
def test_what_forward_asked_of_its_input(forward: Any, example: Any, other: Any, match: str) -> None:
    model = Looks(forward).eval()
    prepared = qat.prepare(model, (example,))
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(example), model(example))
    with pytest.raises(CaptureError, match=match):
        prepared(other)


def test_what_nobody_reads_may_change() -> None:
    def batch(i: int) -> dict[str, Any]:
        names = [f"{i}.png", f"{i + 1}.png"]
        return {"image": X, "name": names, "index": i, "id": str(i), "flip": i > 0, "mask": M if i else None}

    for forward in (image, sized):
        model = Looks(forward).eval()
        prepared = qat.prepare(model, (batch(0),))
        qat.fake_quant(prepared, enabled=False)
        torch.testing.assert_close(prepared(batch(1)), model(batch(1)))


def sized(layers: Any, batch: dict[str, Any]) -> Tensor:
    return layers(batch["image"] if batch["image"].shape[-1] < 9 else batch["image"][..., :8])


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_an_input_that_is_written_into(norm: type[nn.Module]) -> None:
    model = Looks(written, norm).eval()
    example = {"image": X}
    prepared = qat.prepare(model, (example,))
    qat.fake_quant(prepared, enabled=False)
    assert list(example) == ["image"]
    torch.testing.assert_close(prepared({"image": X}), model({"image": X}))


def test_a_list_of_single_images() -> None:
    model, images = Looks(stacked).eval(), [torch.randn(1, 8, 8) for _ in range(3)]
    prepared = qat.prepare(model, (images,))
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(images), model(images))


class Loose(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.conv(x)


class Prefixes(nn.Module):
    """Arguments whose names begin alike; one is not read, one has a tuple for its default."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, mask_image: Tensor, mask_size: Tensor, mask: Tensor | None = None, *, size: Any = (8, 8)) -> Any:
        y = self.conv(mask_image)
        y.mul_(3.0)
        return {"y": y.flatten(1) * size[0], "more": [y]}


def test_arguments_that_nobody_reads() -> None:
    model = Loose().eval()
    prepared = qat.prepare(model, X)
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(X, flag=True, mask=M), model(X))
    model = Prefixes().eval()
    prepared = qat.prepare(model, (X, M))
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(X, M), model(X, M))
    torch.testing.assert_close(prepared(X, mask_size=M, size=(8, 8)), model(X, M))


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        batch = {key: x.float() if torch.is_tensor(x) and key == "image" else x for key, x in batch.items()}
        y = self.head(self.conv(batch["image"]).relu().mean((2, 3)))
        return nn.functional.cross_entropy(y, batch["label"]) if self.training else y


def test_labels_that_only_training_needs_and_names_of_a_shorter_batch() -> None:
    batch = {"image": X, "label": torch.tensor([0, 1]), "name": ["a.png", "b.png"]}
    model = Loss().train()
    prepared = qat.prepare(model, (batch,)).train()
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(batch), model(batch))
    last = {"image": X[:1], "label": torch.tensor([0]), "name": ["c.png"]}
    torch.testing.assert_close(prepared(last), model(last))
    with pytest.raises(CaptureError, match=r"with batch\['label'\] and is called with no batch\['label'\]"):
        prepared({"image": X})
    torch.testing.assert_close(prepared.eval()({"image": X}), model.eval()({"image": X}))
    with pytest.raises(CaptureError, match=r"the keys 'image', 'label', 'name' in batch and .* with 'image', 'mask'"):
        prepared({"image": X, "mask": X})


class Chosen(nn.Module):
    """What a number, text or list decides, beside a branch on sizes."""

    def __init__(self, choose: Any) -> None:
        super().__init__()
        self.conv, self.choose = nn.Conv2d(1, 8, 3), choose

    def forward(self, x: Tensor, setting: Any) -> Tensor:
        return self.conv(x).flatten(2)[..., :8].mean(2) * self.choose(setting) if x.shape[-1] < 9 else x


@pytest.mark.parametrize(
    ("choose", "first", "other"),
    [
        (lambda s: 2.0 if s == 1 else 3.0, 1, 2),
        (lambda s: 2.0 if s else 3.0, 1, 0),
        (lambda s: 1.0 / s, 2.0, 3.0),
        (lambda s: float(sum(range(s[0]))), (8, 8), (6, 8)),
        (lambda s: [1.0, 2.0, 3.0][s[1]], [0, 1], [0, 2]),
        (lambda s: 2.0 if 3 in s else 3.0, [1, 3], [1, 2]),
        (lambda s: sum({"a": 1.0, "b": 2.0}[name] for name in s), ["a", "b"], ["b", "b"]),
        (lambda s: 2.0 if s == (8, 8) else 3.0, (8, 8), (8, 6)),
    ],
)
def test_what_decides_is_fixed(choose: Any, first: Any, other: Any) -> None:
    model = Chosen(choose).eval()
    prepared = qat.prepare(model, (X, first))
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(X, first), model(X, first))
    with pytest.raises(CaptureError, match="forward was captured with setting"):
        prepared(X, other)


def test_a_number_that_decides_nothing_stays_open() -> None:
    model = Chosen(lambda s: s).eval()
    prepared = qat.prepare(model, (X, 2.0))
    qat.fake_quant(prepared, enabled=False)
    torch.testing.assert_close(prepared(X, 3.0), model(X, 3.0))


def test_keywords_that_the_example_has_not() -> None:
    class Keywords(Loss):
        def forward(self, x: Tensor, *args: Any, **more: Any) -> Tensor:
            y = self.conv(x).mean((2, 3))
            return y * more["scale"] if "scale" in more else y

    prepared = qat.prepare(Keywords().eval(), X)
    prepared(X, flag=True)
    with pytest.raises(CaptureError, match=r"with no more\['scale'\] and is called with more\['scale'\]"):
        prepared(X, scale=2.0)
    with pytest.raises(CaptureError, match="at most 1 inputs by position and is called with 2"):
        prepared(X, X)


def test_equal_values_of_other_types() -> None:
    prepared = qat.prepare(Prefixes().eval(), (X, M))
    prepared(X, M, size=X.shape[-2:])  # torch.Size for a tuple
    prepared(X, M, size=[8, 8])
    with pytest.raises(CaptureError, match=r"size=\(8, 8\) and is called with size=array"):
        prepared(X, M, size=np.ones(2))
