from __future__ import annotations

import json

import pytest

from qat.errors import ReportError
from qat.report.record import Layer, Layers, Phase, Training, Values, read, write

VALUES = Values(
    low=-1.0, high=1.0, counts=(1, 2), grid="int8", bits=8, grid_low=-1.0, grid_high=1.0, clipped=0.25, snr=40.0
)
LAYERS = Layers(layers=(Layer(name="conv", kind="conv2d", integer=True, inputs=("x",), weight=VALUES),), examples=4)
TRAINING = Training(
    steps=(0, 10), loss=(2.5, 1.5), lr=(0.1, 0.0), phases=(Phase(name="learn", start=0, end=5),), range_steps=(10,),
    scales={"q": (0.5,)}, trained=("q",),
)  # fmt: skip


def test_a_record_comes_back_as_it_was(tmp_path):
    write(tmp_path, LAYERS)
    write(tmp_path, TRAINING, "qat")
    assert read(tmp_path, Layers) == LAYERS
    assert read(tmp_path, Training, "qat") == TRAINING
    assert read(tmp_path, Training, "float") is None


def test_keys_that_this_version_does_not_know_are_left_out_and_lacking_ones_take_defaults(tmp_path):
    path = write(tmp_path, LAYERS)
    path.write_text(json.dumps({"version": 0, "later": 1, "layers": [{"name": "a", "kind": "b", "integer": False}]}))
    assert read(tmp_path, Layers) == Layers(layers=(Layer(name="a", kind="b", integer=False),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 99}', "is of version 99, and this package reads up to 1; update qat"),
        ("{", "is damaged: Expecting property name.*Remove it"),
        ('{"version": 1}', "is damaged: it has no layers"),
        ('{"version": 1, "layers": [{"name": 3, "kind": "k", "integer": true}]}', r"layers\.0\.name: 3 is no str"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(tmp_path, text, message):
    write(tmp_path, LAYERS).write_text(text)
    with pytest.raises(ReportError, match=message):
        read(tmp_path, Layers)


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({"steps": [1, 2], "loss": [2.0, 1.0]}, "is damaged: lr has 0 points, and steps 2. Remove it"),
        ({"val_steps": [1], "val_loss": [1.0]}, "val_top1 has 0 points, and val_steps 1"),
        ({"range_steps": [1], "scales": {"conv": [0.1, 0.2]}}, "scales of conv has more points than range_steps"),
        ({"steps": 3}, "steps: 3 is no list"),
    ],
)
def test_curves_without_a_value_for_each_step_are_refused(tmp_path, curves, message):
    write(tmp_path, TRAINING, "qat").write_text(json.dumps(curves))
    with pytest.raises(ReportError, match=message):
        read(tmp_path, Training, "qat")
