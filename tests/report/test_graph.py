"""The drawing of a model: which marks, edges and modules follow from which operators."""

from __future__ import annotations

from qat.report.graph import WHOLE, modules
from qat.report.record import Layer, Layers, Values

GRID = Values(low=0, high=1, counts=(1,), grid="uint8", bits=8, grid_low=0, grid_high=1, clipped=0, snr=40)


def op(name: str, *inputs: str, integer: bool = True, activation: Values | None = None) -> Layer:
    return Layer(name=name, kind="conv2d", integer=integer, inputs=inputs, activation=activation, why="<why>")


def test_integers_floats_quantizers_and_what_is_read():
    layers = (op("a.one", activation=GRID), op("a.two", "a.one"), op("a.three", "a.one", "b.far", integer=False))
    ((name, svg, count),) = modules(Layers(layers=layers))
    assert (name, count) == ("a", 3)
    assert (svg.count('class="int"'), svg.count('class="flt"')) == (2, 1)
    assert svg.count('class="quant"') == 1
    assert svg.count('class="edge"') == 2  # b.far is of another drawing, and stands in words
    assert "reads b.far" in svg
    assert "result uint8" in svg
    assert "<title>a: a.one, a.two, a.three</title>" in svg


def test_a_module_of_many_operators_is_drawn_in_its_parts():
    layers = [op(f"stage.{block}.conv{i}") for block in (0, 1) for i in range(WHOLE - 2)]
    found = modules(Layers(layers=(*layers, op("fc"))))
    assert [(name, count) for name, _, count in found] == [
        ("stage.0", WHOLE - 2), ("stage.1", WHOLE - 2), ("model", 1),
    ]  # fmt: skip


def test_names_cannot_end_the_drawing():
    ((_, svg, _),) = modules(Layers(layers=(op("a</svg><script>"),)))
    assert "<script>" not in svg
