"""Sensitivity as a picture and a table, from what `sensitivity.json` holds.

The picture: each tensor's SNR alone at every width that was measured, the chosen one as a ring; what the outputs gain
where it stays in float; and the SNR that each mean of bits would have.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

try:
    import vl_convert
except ImportError:  # the numbers are in sensitivity.json all the same
    vl_convert = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
WIDTHS = ("#b2182b", "#d6604d", "#e08f45", "#c3a327", "#6a9a3c", "#2f8f83", "#2166ac")  # of 2 to 8 bits
INK, SOFT = "#333333", "#bbbbbb"
ROW, COLUMN = 13, 260  # px
SHOWN = 10  # rows of the table on the terminal

Spec = dict[str, Any]


def sensitivity_svg(found: Mapping[str, Any]) -> str | None:
    """The picture as SVG; None where vl-convert is not installed."""
    if vl_convert is None:
        log.warning("no picture of the sensitivity: vl-convert-python is not installed")
        return None
    return vl_convert.vegalite_to_svg(sensitivity_chart(found))


def sensitivity_chart(found: Mapping[str, Any]) -> Spec:
    """The picture as a Vega-Lite specification."""
    rows = [_tensors(found, which) for which in ("weight", "activation")]
    parts = [part for part in rows if part]
    if found["front"]:
        parts.append(_front(found))
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "background": "white",
        "title": {
            "text": f"{found['model']} · {found['recipe']} · {found['target']}",
            "subtitle": f"outputs of {found['examples']} images, one tensor quantized at a time",
            "anchor": "start",
        },
        "vconcat": parts,
        "config": {"axis": {"labelFontSize": 10, "labelLimit": 260, "titleFontWeight": "normal"}},
    }


def _tensors(found: Mapping[str, Any], which: str) -> Spec | None:
    """Weights, or activations: SNR alone at every width, and beside it what is gained in float."""
    tensors = [t for t in found["tensors"] if t["tensor"] == which]
    if not tensors:
        return None
    points, gains = [], []
    for t in tensors:
        scores = {int(bits): score["snr"] for bits, score in t["widths"].items()}
        if "alone" in t:
            scores.setdefault(t["bits"], t["alone"]["snr"])
            gains.append({"name": t["name"], "gain": t["all_but_one"]["snr"] - found["quantized"]["snr"]})
        points += [
            {"name": t["name"], "bits": bits, "snr": snr, "chosen": bits == t["chosen_bits"]}
            for bits, snr in scores.items()
        ]
    order = [t["name"] for t in tensors]
    y = {"field": "name", "type": "nominal", "sort": order, "title": None, "axis": {"grid": True, "ticks": False}}
    x = {"field": "snr", "type": "quantitative", "title": f"{which} alone: SNR of the outputs, dB",
         "scale": {"zero": False}}  # fmt: skip
    color = {"field": "bits", "type": "ordinal", "scale": {"domain": list(range(2, 9)), "range": list(WIDTHS)},
             "legend": {"title": "bits", "values": sorted({p["bits"] for p in points})}}  # fmt: skip
    size = {"width": COLUMN, "height": ROW * len(order)}
    dots = {
        **size,
        "data": {"values": points},
        "encoding": {"y": y, "x": x},
        "layer": [
            {"mark": {"type": "point", "filled": True, "size": 42, "opacity": 1}, "encoding": {"color": color}},
            {"transform": [{"filter": "datum.chosen"}], "mark": {"type": "point", "size": 130, "color": INK}},
        ],
    }
    if not gains:
        return dots
    bars = {
        **size,
        "width": COLUMN // 2,
        "data": {"values": gains},
        "mark": {"type": "bar", "color": SOFT, "height": ROW - 5},
        "encoding": {
            "y": {**y, "axis": {"labels": False, "ticks": False, "grid": True}},
            "x": {"field": "gain", "type": "quantitative", "title": "all but this one: gain, dB"},
        },
    }
    return {"hconcat": [dots, bars], "spacing": 8}


def _front(found: Mapping[str, Any]) -> Spec:
    """The SNR that is predicted at each mean of bits."""
    points = [{"bits": _mean(each), "snr": each["snr"], "chosen": False} for each in found["front"]]
    if found["chosen"]:
        points.append({"bits": _mean(found["chosen"]), "snr": found["chosen"]["snr"], "chosen": True})
    encoding = {
        "x": {"field": "bits", "type": "quantitative", "title": "mean bits", "scale": {"zero": False}},
        "y": {"field": "snr", "type": "quantitative", "title": "predicted SNR, dB", "scale": {"zero": False}},
    }
    return {
        "width": COLUMN,
        "height": 150,
        "data": {"values": points},
        "encoding": encoding,
        "layer": [
            {
                "transform": [{"filter": "!datum.chosen"}],
                "mark": {"type": "line", "point": {"color": INK}, "color": SOFT},
            },
            {"transform": [{"filter": "datum.chosen"}], "mark": {"type": "point", "size": 130, "color": INK}},
        ],
    }


def _mean(mixture: Mapping[str, Any]) -> float:
    """Of weights and activations alike."""
    means = [bits for bits in mixture["mean_bits"].values() if bits is not None]
    return sum(means) / len(means)


def sensitivity_table(found: Mapping[str, Any]) -> Table:
    """The tensors that cost most under the recipe."""
    rows: Sequence[Mapping[str, Any]] = found["tensors"][:SHOWN]
    table = Table(
        title=f"Most sensitive of {len(found['tensors'])} tensors, by the outputs of {found['examples']} images",
        title_style="bold", title_justify="left",
    )  # fmt: skip
    table.add_column("tensor", no_wrap=True)
    for column in ("bits", "SNR, dB", "loss", "gain, dB", "chosen"):
        table.add_column(column, justify="right")
    for row in rows:
        alone, gain = row["alone"], row["all_but_one"]["snr"] - found["quantized"]["snr"]
        table.add_row(
            f"{row['name']} {row['tensor']}", str(row["bits"]), f"{alone['snr']:.1f}",
            "" if alone["loss"] is None else f"{alone['loss']:.4f}", f"{gain:+.2f}", str(row["chosen_bits"] or "fixed"),
        )  # fmt: skip
    loss = "" if found["float_loss"] is None else f"; loss in float {found['float_loss']:.4f}"
    table.caption = (
        f"SNR and loss: alone; gain: all but this one. All quantized: SNR {found['quantized']['snr']:.1f} dB{loss}"
    )
    table.caption_justify = "left"
    return table
