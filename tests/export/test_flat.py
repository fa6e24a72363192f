"""Dicts, lists and tuples as one input of forward: traced as Python sees them, one tensor each in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.errors import ConfigError, DataError
from qat.inputs import Inputs

IMAGE, META, LABELS = torch.randn(6, 1, 8, 8), torch.randn(6, 3), torch.arange(6) % 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.numbers, self.head = nn.Conv2d(1, 8, 3), nn.Linear(3, 8), nn.Linear(8, 4)

    def classify(self, image: Tensor, meta: Tensor) -> Tensor:
        return self.head(self.conv(image).relu().mean((2, 3)) + self.numbers(meta))


class Dict(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.classify(batch["image"], batch["meta"])


class Asked(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.classify(batch.pop("image"), batch.get("meta")) if "meta" in batch else batch["image"]


class Items(Net):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.classify(**{k: v for k, v in batch.items() if k != "label"})


class Pair(Net):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        image, meta = pair
        return self.classify(image, meta)


class Last(Net):
    def forward(self, *, xs: list[Tensor]) -> Tensor:
        return self.classify(xs[0], xs[-1])


class Mixed(Net):
    def forward(self, batch: dict[str, Tensor], meta: Tensor) -> Tensor:
        return self.classify(batch["the image"], meta)


class Keywords(Net):
    def forward(self, image: Tensor, **more: Tensor) -> Tensor:
        return self.classify(image, more["meta"])


class Two(Net):
    """What both dicts have, each is read for once."""

    def forward(self, a: dict[str, Tensor], b: dict[str, Tensor], meta: Tensor | None = None) -> Tensor:
        return self.classify(a["image"], b["meta"] + b["image"].mean((1, 2, 3))[:, None])


class Scaled(Net):
    def forward(self, image: Tensor, factor: float = 1.0, meta: Any = None, size: Any = (1, 2)) -> Tensor:
        return self.classify(image * factor, meta) * size[1]


class Numbers(Net):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.classify(batch["image"] * batch["factor"], batch["meta"][: batch["count"]])


class Upper(Net):
    def forward(self, IMG: Tensor, batch: dict[str, Tensor], Pair: list[Tensor]) -> Tensor:  # noqa: N803
        return self.classify(
            IMG + batch["img"] + batch["the img"] + batch["the.img"], batch["self"] + Pair[0] + Pair[1]
        )


class Sized(Net):
    """Whose sizes decide, so that the other tracer is needed."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        image = batch["image"] if batch["image"].shape[-1] < 9 else batch["image"][..., :8]
        return self.classify(image, batch["meta"])


DICT = {"label": LABELS, "meta": META, "image": IMAGE}
CASES = [
    pytest.param(Dict, (DICT,), {}, ("meta", "image"), id="dict"),
    pytest.param(Asked, (DICT,), {}, ("meta", "image"), id="asked"),
    pytest.param(Items, (DICT,), {}, ("meta", "image"), id="items"),
    pytest.param(Sized, (DICT,), {}, ("meta", "image"), id="sized"),
    pytest.param(Dict, (), {"batch": DICT}, ("meta", "image"), id="by keyword"),
    pytest.param(Pair, ((IMAGE, META),), {}, ("pair_0", "pair_1"), id="tuple"),
    pytest.param(Pair, ([IMAGE, META],), {}, ("pair_0", "pair_1"), id="list"),
    pytest.param(Last, (), {"xs": [IMAGE, LABELS, META]}, ("xs_0", "xs_2"), id="list by keyword"),
    pytest.param(Mixed, ({"the image": IMAGE}, META), {}, ("meta", "the_image"), id="beside a tensor"),
    pytest.param(
        Upper,
        (IMAGE, {"img": IMAGE, "the img": IMAGE, "the.img": IMAGE, "self": META}, [META, META]),
        {},
        ("img", "img_1", "batch_the_img", "batch_the_img_1", "self_1", "pair_0", "pair_1"),
        id="names as torch.export spells them",
    ),
    pytest.param(Keywords, (IMAGE,), {"meta": META}, ("image", "meta"), id="any keywords"),
    pytest.param(Two, (DICT, DICT), {}, ("a_image", "meta", "b_image"), id="keys of both"),
    pytest.param(Two, (DICT, DICT, None), {}, ("a_image", "meta", "b_image"), id="keys of both, a setting"),
    pytest.param(Scaled, (IMAGE, 1.0, META), {}, ("image", "meta"), id="a number by position"),
    pytest.param(Scaled, (IMAGE, 1.0, META, (1, 2)), {}, ("image", "meta"), id="a tuple by position"),
    pytest.param(Numbers, ({**DICT, "factor": 0.5, "count": 9},), {}, ("image", "meta"), id="numbers"),
]


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return (Inputs(args, kwargs), LABELS)


@pytest.mark.runtime
@pytest.mark.parametrize(("model", "args", "kwargs", "names"), CASES)
def test_one_tensor_for_each_entry(
    model: type[Net], args: tuple[Any, ...], kwargs: dict[str, Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = model().eval()
    prepared = qat.prepare(network, args, example_kwargs=kwargs)
    batches = [batch_of(args, kwargs)]
    qat.calibrate(prepared, batches)
    integer = qat.convert(prepared)
    left, named = prepared.fixed_arguments.left(args, kwargs)
    torch.testing.assert_close(integer(*left, **named), prepared(*args, **kwargs), atol=0.05, rtol=0)  # a step or two
    artifact = qat.export(integer, tmp_path / "model.onnx")
    assert set(artifact.inputs) == set(names)
    report = qat.verify(prepared, artifact, batches, float_model=network, layerwise=True)
    assert report.passed
    assert report.layers


@pytest.mark.runtime
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")  # theirs
@pytest.mark.parametrize(
    ("suffix", "target"),
    [
        (".pt2", "torch"),
        (".xml", "openvino"),
        (".pte", "executorch"),
    ],
)
def test_in_other_runtimes(suffix: str, target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    prepared = qat.prepare(Dict().eval(), (DICT,), target=target)
    batches = [((DICT,), LABELS)]
    qat.calibrate(prepared, batches)
    artifact = qat.export(qat.convert(prepared), tmp_path / f"model{suffix}")
    assert qat.verify(prepared, artifact, batches).passed


class Named(NamedTuple):
    image: Tensor
    meta: Tensor


class Attributes(Net):
    def forward(self, batch: Named) -> Tensor:
        return self.classify(batch.image, batch.meta)


class Nested(Net):
    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.classify(batch["image"], batch["more"]["meta"])


@pytest.mark.parametrize(
    ("model", "args", "match"),
    [
        (Attributes, (Named(IMAGE, META),), "takes a Named as one input and does more with it than read its entries"),
        (Nested, ({"image": IMAGE, "more": {"meta": META}},), "takes a dict as one input with another container in it"),
    ],
)
def test_what_cannot_be_opened(model: type[Net], args: tuple[Any, ...], match: str, tmp_path: Path) -> None:
    """It trains, and is refused as a file; nothing is written."""
    prepared = qat.prepare(model().eval(), args)
    qat.calibrate(prepared, [(args, LABELS)])
    with pytest.raises(ConfigError, match=match):
        qat.export(qat.convert(prepared), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_without_a_graph(tmp_path: Path) -> None:
    prepared = qat.prepare(Dict().eval(), (DICT,), placement="modules")
    qat.calibrate(prepared, [((DICT,), LABELS)])
    with pytest.raises(ConfigError, match="takes a dict as one input and has no graph in which it could be opened"):
        qat.export(qat.convert(prepared), tmp_path / "model.onnx")


def test_a_dict_that_is_given_by_keyword() -> None:
    prepared = qat.prepare(Dict().eval(), (DICT,))
    with pytest.raises(DataError, match=r"unexpected keyword argument 'label'.*comes as \(\(\{'image': x\},"):
        qat.calibrate(prepared, [(DICT, LABELS)])


def test_ranges_do_not_depend_on_the_order_of_keys(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Dict().eval()
    one = qat.prepare(network, ({"image": IMAGE, "meta": 9 * META},))
    qat.calibrate(one, [(({"image": IMAGE, "meta": 9 * META},), LABELS)])
    other = qat.prepare(network, (DICT,))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(DICT), other(DICT))
    assert {"batch_image_quantizer", "batch_meta_quantizer"} <= dict(one.named_modules()).keys()
