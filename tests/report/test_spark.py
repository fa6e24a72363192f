"""Small drawings, by hand."""

from __future__ import annotations

import math

from qat.report.record import Values
from qat.report.spark import curve, histogram, text_curve, text_histogram

VALUES = Values(
    low=-1.0, high=1.0, counts=(0, 1, 16, 1), grid="int8", bits=8, grid_low=-0.5, grid_high=2.0, clipped=0.0, snr=40.0
)


def test_a_histogram_has_a_bar_for_each_count_and_a_line_for_each_end_inside():
    svg = histogram(VALUES)
    assert svg.count("h24.0") == 3  # 96 units in four bins, of which one is empty
    assert 'class="ends" d="M24.0 0v24"' in svg  # -0.5 of -1 to 1; 2 lies outside
    assert "<title>values -1 to 1, grid -0.5 to 2</title>" in svg


def test_a_histogram_in_text_shows_fourth_roots():
    assert text_histogram(VALUES) == "·▅█▅"  # (1/16)^(1/4) = 1/2


def test_a_curve_goes_from_its_lowest_to_its_highest_value_with_gaps():
    svg = curve((1.0, math.nan, 3.0, 2.0), "scale of <a>")
    assert 'd="M1.0 22.0M63.7 2.0L95.0 12.0"' in svg
    assert "<title>scale of &lt;a&gt;: 1 to 2, between 1 and 3</title>" in svg


def test_curves_in_text():
    assert text_curve((0.0, 1.0, 2.0, 7.0)) == "▁▂▃█"
    assert len(text_curve([float(i) for i in range(1000)])) == 16
    assert text_curve((5.0, 5.0)) == "▁▁"
    assert text_curve((100.0, 100.5)) == "▁█"
    assert text_curve((100.0, 100.5), least=0.05) == "▁▂"  # a tenth of the height


def test_fewer_than_two_numbers_are_no_curve():
    for values in ((), (1.0,), (1.0, math.nan)):
        assert (curve(values, "a"), text_curve(values)) == ("", "")
