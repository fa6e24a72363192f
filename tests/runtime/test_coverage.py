from __future__ import annotations

import pytest
from torch import nn

import qat
from qat.runtime import load
from qat.runtime.coverage import Coverage, Executed, Kind


def chain(*kinds: Kind) -> Coverage:
    operators = [
        Executed(name=str(i), op="Op", kind=kind, inputs=(str(i - 1),) if i else ()) for i, kind in enumerate(kinds)
    ]
    return Coverage(runtime="mine", operators=tuple(operators))


INTEGER, FLOAT, BORDER = Kind.INTEGER, Kind.FLOAT, Kind.BORDER


@pytest.mark.parametrize(
    ("kinds", "islands"),
    [
        ((INTEGER, BORDER, FLOAT, BORDER, INTEGER), ["2"]),
        ((INTEGER, BORDER, FLOAT, FLOAT, BORDER, INTEGER), ["2", "3"]),
        ((FLOAT, BORDER, INTEGER, BORDER, FLOAT), []),
        ((INTEGER, BORDER, INTEGER), []),
        ((FLOAT,), []),
    ],
)
def test_an_island_has_integers_on_both_sides(kinds, islands):
    assert [o.name for o in chain(*kinds).islands] == islands


def test_a_float_branch_beside_integers_is_no_island():
    operators = (
        Executed(name="a", op="Conv", kind=INTEGER),
        Executed(name="b", op="Softmax", kind=FLOAT, inputs=("a",)),
        Executed(name="c", op="Conv", kind=INTEGER, inputs=("a",)),
    )
    assert Coverage(runtime="mine", operators=operators).islands == ()


def test_in_words():
    assert str(chain(INTEGER, FLOAT, INTEGER)) == "mine: 2 integer, 1 float, 1 island: Op 1"
    assert str(Coverage(runtime="mine", operators=(), delegates=1)) == "mine: 0 integer, 0 float, 1 delegate, no island"


@pytest.mark.runtime
@pytest.mark.parametrize(("target", "file"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
def test_known_nets_run_on_integers_throughout(trained, tmp_path, target, file):
    if target == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    coverage = load(qat.export(qat.convert(trained(target)), tmp_path / file)).coverage()
    assert coverage.in_float == ()
    assert len(coverage.integer) >= 8  # convolutions, pooling, linear; additions may run inside convolutions


class Float(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return self.second(self.first(x).erf()).mean((2, 3))


@pytest.mark.runtime
@pytest.mark.parametrize(("target", "file"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")])
def test_an_operator_without_an_integer_kernel_is_an_island(images, tmp_path, target, file):
    if target == "openvino":
        pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    prepared = qat.prepare(Float().eval(), images[:2], target=target)
    qat.calibrate(prepared, [images])
    coverage = load(qat.export(qat.convert(prepared), tmp_path / file)).coverage()
    assert "Erf" in {str(o).partition(" ")[0] for o in coverage.islands} or len(coverage.islands) == 1
