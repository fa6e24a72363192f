"""Several inputs, keywords and dict outputs, from calibration to the runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.errors import DataError
from qat.inputs import Inputs


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.mask, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        features = (self.image(x) + self.mask(mask)).relu().mean([2, 3]) * scale
        return {"logits": self.head(features), "features": features}


X, MASK, LABELS = torch.zeros(5, 3), torch.ones(5, 1), torch.arange(5)


@pytest.mark.parametrize(
    ("batch", "args", "kwargs"),
    [
        (X, (X,), {}),
        ((X, LABELS), (X,), {}),
        ([X, LABELS], (X,), {}),
        (((X, MASK), LABELS), (X, MASK), {}),
        (((X, MASK),), (X, MASK), {}),
        (({"x": X, "mask": MASK}, LABELS), (), {"x": X, "mask": MASK}),
        ({"x": X, "mask": MASK}, (), {"x": X, "mask": MASK}),
        ((Inputs((X,), {"mask": MASK}), LABELS), (X,), {"mask": MASK}),
    ],
)
def test_inputs_of_a_batch(batch: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
    found = Inputs.of(batch)
    assert len(found) == 5
    assert [id(x) for x in found.args] == [id(x) for x in args]
    assert {k: id(v) for k, v in found.kwargs.items()} == {k: id(v) for k, v in kwargs.items()}


def test_ordered_by_the_artefacts_names() -> None:
    assert [id(x) for x in Inputs((), {"mask": MASK, "x": X}).ordered(["x", "mask"])] == [id(X), id(MASK)]
    assert [id(x) for x in Inputs((X,), {"mask": MASK}).ordered(["x", "mask"])] == [id(X), id(MASK)]


@pytest.mark.parametrize("given", [Inputs((X,), {}), Inputs((X, MASK, MASK), {}), Inputs((), {"x": X})])
def test_a_missing_input_is_named(given: Inputs) -> None:
    with pytest.raises(DataError, match=r"the artefact takes x, mask, and the batch has .*; several inputs come as"):
        given.ordered(["x", "mask"])


@pytest.mark.runtime
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_several_inputs_and_dict_outputs_reach_the_runtime(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    x, mask, labels = torch.randn(6, 3, 12, 12), torch.rand(6, 1, 12, 12), torch.arange(6) % 4
    prepared = qat.prepare(Masked().eval(), (x, mask))
    qat.calibrate(prepared, [((x, mask), labels)])
    assert prepared(x, mask).keys() == {"logits", "features"}
    artifact = qat.export(qat.convert(prepared), tmp_path / f"masked{suffix}")
    assert artifact.inputs == ("x", "mask")
    positional = qat.verify(prepared, artifact, [((x, mask), labels)], layerwise=True)
    keywords = qat.verify(prepared, artifact, [({"mask": mask, "x": x}, labels)])
    assert positional.passed
    assert positional.layers
    assert positional.stages == keywords.stages
