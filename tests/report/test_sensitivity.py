from __future__ import annotations

import io

import pytest
from rich.console import Console

from qat.report import sensitivity


def score(snr):
    return {"snr": snr, "loss": 0.5}


FOUND = {
    "model": "Net", "recipe": "w4a4", "target": "onnxruntime", "examples": 64, "float_loss": 0.25,
    "quantized": score(18.0),
    "tensors": [
        {"name": "fc", "tensor": "weight", "size": 6, "bits": 4, "open": True, "chosen_bits": 7, "alone": score(20.0),
         "all_but_one": score(21.5), "widths": {"4": score(20.0), "7": score(40.0)}},
        {"name": "x", "tensor": "activation", "size": 9, "bits": 8, "open": False, "chosen_bits": None,
         "alone": score(50.0), "all_but_one": score(18.0), "widths": {}},
    ],
    "chosen": {"mean_bits": {"weight": 7.0, "activation": None}, "snr": 40.0, "weight_bytes": 6},
    "front": [{"mean_bits": {"weight": b, "activation": None}, "snr": snr} for b, snr in ((4.0, 20.0), (7.0, 40.0))],
}  # fmt: skip


def test_the_picture_has_every_width_and_rings_the_chosen():
    weights, activations, front = sensitivity.sensitivity_chart(FOUND)["vconcat"]
    dots, bars = weights["hconcat"]
    assert [(p["bits"], p["snr"], p["chosen"]) for p in dots["data"]["values"]] == [(4, 20.0, False), (7, 40.0, True)]
    assert bars["data"]["values"] == [{"name": "fc", "gain": 3.5}]
    assert [p["bits"] for p in activations["hconcat"][0]["data"]["values"]] == [8]
    assert [p["bits"] for p in front["data"]["values"]] == [4.0, 7.0, 7.0]
    text = sensitivity.sensitivity_svg(FOUND)
    assert text.startswith("<svg")
    assert "fc" in text


def test_of_a_search_alone_there_are_no_gains():
    searched = [{k: v for k, v in row.items() if k not in ("alone", "all_but_one")} for row in FOUND["tensors"]]
    (weights, _) = sensitivity.sensitivity_chart({**FOUND, "tensors": searched, "front": []})["vconcat"]
    assert "hconcat" not in weights


def test_without_the_extra_there_is_no_picture(monkeypatch, caplog):
    monkeypatch.setattr(sensitivity, "vl_convert", None)
    assert sensitivity.sensitivity_svg(FOUND) is None
    assert "vl-convert-python is not installed" in caplog.text


@pytest.mark.parametrize("part", ["fc weight", "+3.50", "0.5000", "fixed", "SNR 18.0 dB", "loss in float 0.2500"])
def test_the_table(part):
    console = Console(width=160, file=io.StringIO())
    console.print(sensitivity.sensitivity_table(FOUND))
    assert part in console.file.getvalue()
