"""Charts as Vega-Lite specifications, drawn in the page by the library that vl-convert brings along.

Colors are CSS variables of the page, so that a chart follows its theme without being drawn again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from qat.report.record import Training

try:
    import vl_convert
except ImportError:  # a report without charts is a report all the same
    vl_convert = None  # type: ignore[assignment]

SERIES = tuple(f"var(--c{i})" for i in range(1, 7))
BANDS = ("var(--b1)", "var(--b2)", "var(--b3)")
SCALES = 24  # learned scales that one chart shows: those that moved most

LABEL = 17  # characters in a line of a band's label
LINE = 11  # its height, pixels
MANY = 60  # jobs whose lines are thin
RESTLESS = 3  # layers that the chart of oscillation shows by name

Spec = dict[str, Any]
Named = tuple[str, Spec]


def javascript() -> str:
    """JavaScript that defines `window.vegaEmbed`; empty where vl-convert is not installed."""
    if vl_convert is None:
        return ""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")


def _chart(about: str, height: int, rows: Sequence[Mapping[str, Any]], layer: list[Spec]) -> Spec:
    return {
        "description": about,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": list(rows)},
        "layer": layer,
    }


def _shown(field: str) -> Spec:
    """A legend whose entries switch series on and off."""
    return {"name": "shown", "select": {"type": "point", "fields": [field], "toggle": "true"}, "bind": "legend"}


DIM = {"condition": {"param": "shown", "value": 1}, "value": 0.08}


def _color(field: str, above: int = 0) -> Spec:
    """Colors of series, with a legend that leaves so many pixels over the chart."""
    legend = {"orient": "top", "title": None, "columns": 3, "labelLimit": 220, "offset": 6 + above, "columnPadding": 14}
    return {"field": field, "type": "nominal", "scale": {"range": list(SERIES)}, "legend": legend, "sort": None}


def _lines(about: str, rows: Sequence[Mapping[str, Any]], title: str, bands: list[Spec], *, log: bool = False) -> Spec:
    y = {"field": "value", "type": "quantitative", "title": title, "scale": {"zero": False}}
    if log:
        y["scale"] = {"type": "log", "nice": False}
        y["axis"] = {"format": "~g", "tickCount": 4}
    encoding = {
        "x": {
            "field": "step",
            "type": "quantitative",
            "title": "optimizer step",
            "scale": {"nice": False},
            "axis": {"tickCount": 8},  # more run into the last one, which is moved inside the chart
        },
        "y": y,
        "color": _color("series", above=_height(bands)),
        "opacity": DIM,
        "tooltip": [{"field": f} for f in ("series", "step", "value")],
    }
    line = {"mark": {"type": "line", "point": {"size": 14}}, "params": [_shown("series")], "encoding": encoding}
    return _chart(about, 180, rows, [*bands, line])


def _bands(training: Training) -> list[Spec]:
    if not training.phases:
        return []
    values = [
        {"phase": "\n".join(wrap(p.name, LABEL)), "start": p.start, "end": p.end, "fill": BANDS[i % len(BANDS)]}
        for i, p in enumerate(training.phases)
    ]
    fill = {"field": "fill", "type": "nominal", "scale": None}  # the colors themselves
    x = {"x": {"field": "start", "type": "quantitative"}, "x2": {"field": "end"}}
    text = {
        "type": "text",
        "align": "left",
        "baseline": "line-top",
        "fontSize": 10,
        "lineHeight": LINE,
        "lineBreak": "\n",
    }
    text |= {"dx": 2, "y": -_height([{"data": {"values": values}}])}  # above the chart, where no line crosses it
    return [
        {"data": {"values": values}, "mark": "rect", "encoding": {**x, "fill": fill}},
        {"data": {"values": values}, "mark": text, "encoding": {"x": x["x"], "text": {"field": "phase"}}},
    ]


def _height(bands: Sequence[Spec]) -> int:
    """Pixels of the bands' labels."""
    return max((LINE * (1 + row["phase"].count("\n")) for band in bands for row in band["data"]["values"]), default=0)


def training_charts(training: Training) -> list[Named]:
    """Title and chart of loss, top-1, learning rate, and of the learned scales that moved most."""
    bands = _bands(training)
    steps, checks = training.steps, training.val_steps
    loss = _rows("training", steps, training.loss) + _rows("validation", checks, training.val_loss)
    found = [("Loss", _lines(f"Loss over {len(steps)} steps", loss, "loss", bands))]
    if checks:
        about = f"Top-1 on the validation images, {training.val_top1[-1]:.2f} % in the end"
        rows = _rows("validation", checks, training.val_top1)
        found.append(("Top-1", _lines(about, rows, "top-1, %", bands)))
    about = f"Learning rate, from {training.lr[0]:.3g} to {training.lr[-1]:.3g}"
    found.append(("Learning rate", _lines(about, _rows("first group", steps, training.lr), "learning rate", bands)))
    if shares := oscillation(training):
        about = "Share of weights whose integer moves and moves back at the next step"
        rows = _rows("mean of all layers", training.range_steps, [100 * share for share in shares])
        for path in _restless(training):
            rows += _rows(path, training.range_steps[-len(training.oscillating[path]) :],
                          [100 * share for share in training.oscillating[path]])  # fmt: skip
        found.append(("Weights that oscillate", _lines(about, rows, "share, %", bands)))
    if scales := _scales(training):
        learned = sum(path in training.trained for path in scales)
        about = (
            f"Scales of the {len(scales)} quantizers that moved most, {learned} learned, relative to their first value"
        )
        found.append(("Scales that moved most", _scale_chart(about, training, scales, bands)))
    return found


def oscillation(training: Training) -> list[float]:
    """Mean over layers of the share of weights that oscillate, 0 to 1, by `range_steps`; empty where not recorded."""
    whole = [v for v in training.oscillating.values() if len(v) == len(training.range_steps)]
    return [sum(shares) / len(whole) for shares in zip(*whole, strict=True)]


def _restless(training: Training) -> list[str]:
    """The layers whose weights oscillate most."""
    known = {p: sum(share for share in v if share == share) for p, v in training.oscillating.items()}
    return sorted((path for path, total in known.items() if total), key=lambda path: -known[path])[:RESTLESS]


def _rows(series: str, steps: Sequence[int], values: Sequence[float]) -> list[dict[str, Any]]:
    return [{"series": series, "step": s, "value": v} for s, v in zip(steps, values, strict=True) if v == v]


def _scales(training: Training) -> dict[str, list[float]]:
    whole = {p: v for p, v in training.scales.items() if len(v) == len(training.range_steps) > 1 and min(v) > 0}
    relative = {path: [x / v[0] for x in v] for path, v in whole.items()}
    moved = sorted(relative, key=lambda path: -abs(max(relative[path]) / min(relative[path]) - 1))
    return {path: relative[path] for path in moved[:SCALES]}


def _scale_chart(about: str, training: Training, scales: Mapping[str, list[float]], bands: list[Spec]) -> Spec:
    """One line a quantizer; the legend tells scales that gradients move from those of observers, where one is known."""
    known = bool(training.trained)
    rows = [
        {
            **row,
            "series": ("learned" if path in training.trained else "observed") if known else "all",
            "quantizer": path,
        }
        for path, values in scales.items()
        for row in _rows(path, training.range_steps, values)
    ]
    chart = _lines(about, rows, "scale / first scale", bands, log=True)
    line = chart["layer"][-1]
    line["mark"] = {"type": "line", "strokeWidth": 1.2}
    line["encoding"]["detail"] = {"field": "quantizer"}
    line["encoding"]["tooltip"] = [{"field": f} for f in ("quantizer", "series", "step", "value")]
    return chart


def pareto_chart(rows: Sequence[Mapping[str, Any]], cost: str, title: str) -> Spec:
    """int8 top-1 against a cost, with the front as a line; `rows` have job, top1, recipe, front and the cost."""
    x = {"field": cost, "type": "quantitative", "title": title, "scale": {"zero": False}}
    y = {"field": "top1", "type": "quantitative", "title": "int8 top-1, %", "scale": {"zero": False}}
    on = [row for row in rows if row[f"{cost} front"]]
    shown = {"x": x, "y": y, "color": _color("recipe", above=LINE), "opacity": DIM,
             "tooltip": [{"field": f} for f in ("job", "settings", "top1", cost)]}  # fmt: skip
    line = {"type": "line", "interpolate": "step-after", "color": "var(--soft)", "strokeDash": [4, 3]}
    names = {"type": "text", "align": "left", "dx": 6, "dy": -7, "fontSize": 10}
    about = f"int8 top-1 against {title} of {len(rows)} jobs; on the front: {', '.join(str(r['job']) for r in on)}"
    return _chart(about, 260, rows, [
        {"data": {"values": on}, "mark": line, "encoding": {"x": x, "y": y}},
        {"mark": {"type": "point", "filled": True, "size": 70}, "params": [_shown("recipe")], "encoding": shown},
        {"data": {"values": on}, "mark": names, "encoding": {"x": x, "y": y, "text": {"field": "job"}}},
    ])  # fmt: skip


def parallel_chart(jobs: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Spec:
    """Parallel coordinates: one line a job, one axis a setting or a result.

    Args:
        jobs: `job`, `recipe` and a value for every axis, number or text.
        axes: from left to right.
    """
    rows, ticks = [], []
    for axis in axes:
        values = [job[axis] for job in jobs]
        place = _places(values)
        for job in jobs:
            at, value = place[job[axis]], _text(job[axis])
            rows.append({"job": str(job["job"]), "recipe": job["recipe"], "axis": axis, "at": at, "value": value})
        named = place if len(place) <= 8 else {v: at for v, at in place.items() if at in (0.0, 1.0)}
        ticks += [{"axis": axis, "at": at, "value": _text(value)} for value, at in named.items()]
    x = {"field": "axis", "type": "nominal", "sort": list(axes), "title": None, "scale": {"type": "point"},
         "axis": {"labelAngle": -20, "labelFontSize": 11, "grid": True, "labelLimit": 140}}  # fmt: skip
    y = {"field": "at", "type": "quantitative", "axis": None}
    shown = {"x": x, "y": y, "color": _color("recipe"), "detail": {"field": "job"}, "opacity": DIM,
             "tooltip": [{"field": f} for f in ("job", "axis", "value")]}  # fmt: skip
    line = {"type": "line", "strokeWidth": 1.6 if len(jobs) <= MANY else 0.5}
    text = {"type": "text", "align": "left", "dx": 5, "fontSize": 10}
    return _chart(f"Parallel coordinates of {len(jobs)} jobs over {', '.join(axes)}", 280, rows, [
        {"mark": line, "params": [_shown("recipe")], "encoding": shown},
        {"data": {"values": ticks}, "mark": text, "encoding": {"x": x, "y": y, "text": {"field": "value"}}},
    ])  # fmt: skip


def _places(values: Sequence[Any]) -> dict[Any, float]:
    """Where each value is on its axis, 0 to 1: numbers to scale, words at equal distances."""
    known = list(dict.fromkeys(values))
    if all(isinstance(value, int | float) for value in known):
        low, span = min(known), (max(known) - min(known)) or 1.0
        return {value: (value - low) / span for value in sorted(known)}
    known.sort(key=str)
    return {value: i / max(len(known) - 1, 1) for i, value in enumerate(known)}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def sweep_charts(rows: Sequence[Mapping[str, Any]], varied: Sequence[str], costs: Mapping[str, str]) -> list[Named]:
    """Title and chart of every front; the last one is of parallel coordinates, over settings and results."""
    if not rows:
        return []
    found = [(f"int8 top-1 against {title}", pareto_chart(rows, cost, title)) for cost, title in costs.items()]
    names = {**{f"set {key}": key for key in varied}, **costs, "top1": "int8 top-1, %"}
    jobs = [{"job": r["job"], "recipe": r["recipe"], **{name: r[key] for key, name in names.items()}} for r in rows]
    return [*found, ("Settings and results", parallel_chart(jobs, list(names.values())))]
