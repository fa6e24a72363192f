"""The model as SVG, one drawing for every module: operators in a column, what each reads as arcs.

A module is drawn as a whole where it has at most `WHOLE` operators, else in the parts that it has below.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup, escape

from qat.report.record import Layer, Layers

ROW, LEFT, WIDTH, ARC = 26, 70, 640, 9  # heights and widths in pixels; ARC: of an arc, for every row it spans
WHOLE = 16  # operators that one drawing shows
MODEL = "model"  # where operators are that belong to no module


def modules(layers: Layers) -> list[tuple[str, Markup, int]]:
    """Name, drawing and number of operators of each stretch of the graph that is of one module."""
    return [(name, _draw(name, members), len(members)) for name, members in _stretches(layers.layers, 1)]


def _stretches(members: Sequence[Layer], depth: int) -> list[tuple[str, list[Layer]]]:
    """Neighbours whose names have the same first `depth` parts; parted further where they are many."""
    found: list[tuple[str, list[Layer]]] = []
    for name, neighbours in groupby(members, key=lambda layer: _module(layer.name, depth)):
        group = list(neighbours)
        deeper = any(layer.name.count(".") > depth for layer in group)
        found += _stretches(group, depth + 1) if len(group) > WHOLE and deeper else [(name, group)]
    return found


def _module(name: str, depth: int) -> str:
    """The first parts of `layer1.0.conv1`, without the operator's own."""
    return ".".join(name.split(".")[:-1][:depth]) or MODEL


def _draw(name: str, members: list[Layer]) -> Markup:
    row = {layer.name: i for i, layer in enumerate(members)}
    edges, marks = [], []
    for i, layer in enumerate(members):
        y = ROW * i + ROW // 2
        outside = [source for source in layer.inputs if source not in row]
        for source in (s for s in layer.inputs if s in row):
            start = ROW * row[source] + ROW // 2
            bend = 0 if i - row[source] == 1 else min(ARC * (i - row[source]), LEFT - 14)
            edges.append(f'<path class="edge" d="M{LEFT} {start}C{LEFT - bend} {start} {LEFT - bend} {y} {LEFT} {y}"/>')
        kind = "int" if layer.integer else "flt"
        marks.append(f'<circle class="{kind}" cx="{LEFT}" cy="{y}" r="5"/>')
        if layer.activation:
            marks.append(f'<path class="quant" d="M{LEFT + 14} {y - 5}l5 5l-5 5l-5 -5z"/>')
        short = layer.name.removeprefix(f"{name}.")
        said = [layer.kind if layer.kind != short else ""]
        said += [f"weight {layer.weight.grid}" if layer.weight else ""]
        said += [f"result {layer.activation.grid}" if layer.activation else ""]
        said += [f"reads {', '.join(outside)}" if outside else ""]
        about = escape(" · ".join(part for part in said if part))
        marks.append(
            f'<text x="{LEFT + 26}" y="{y + 4}">{escape(short)} <tspan class="q" dx="6">{about}</tspan></text>'
        )
    height = ROW * len(members)
    label = escape(f"{name}: {', '.join(layer.name for layer in members)}")
    return Markup(
        f'<div class="scroll"><svg class="graph" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'style="min-width:{WIDTH}px" role="img"><title>{label}</title>{"".join(edges)}{"".join(marks)}</svg></div>'
    )
