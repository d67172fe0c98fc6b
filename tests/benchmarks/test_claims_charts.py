"""Charts and sheets of pictures."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from tests.benchmarks.claims.charts import Series, scatter, ticks
from tests.benchmarks.claims.sheets import Row, sheet, wrapped


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_ticks_are_few_round_and_inside(low, span):
    marks = ticks(low, low + span)
    assert 1 <= len(marks) <= 8
    assert all(low - span * 1e-6 <= mark <= low + span * (1 + 1e-6) for mark in marks)


def test_every_series_is_drawn_in_its_colour_and_higher_is_up():
    colours = ("#ff0000", "#0000ff")
    chart = scatter(
        [Series("low", [(0.1, 1.0)], colours[0]), Series("high", [(0.1, 9.0), (0.9, 9.0)], colours[1], ["a", "b"])],
        "identity",
        "change",
        legend=0,
    )
    pixels = np.asarray(chart).astype(int)
    rows = []
    for colour in colours:
        near = np.abs(pixels - np.array(ImageColor.getrgb(colour))).sum(axis=2) < 60
        assert near.any()
        rows.append(np.nonzero(near)[0].mean())
    assert rows[1] < rows[0]


def test_a_chart_of_nothing_is_white():
    chart = scatter([Series("none", [(math.nan, 1.0)], "#ff0000")], "x", "y")
    assert np.asarray(chart).min() == 255


def test_a_sheet_leaves_a_hole_where_a_picture_is_missing():
    red = Image.new("RGB", (8, 8), "red")
    shown = np.asarray(sheet(["one", "two"], [Row([red, None], "below")], side=40))
    reds = (shown == (255, 0, 0)).all(axis=2)
    assert reds.sum() == 40 * 40
    assert reds[:, shown.shape[1] // 2 :].sum() == 0


@pytest.mark.parametrize(
    "text, lines", [("a b c", ["a b c"]), ("one two three four", ["one two", "three four"]), ("x" * 30, ["x" * 30])]
)
def test_titles_are_wrapped_at_words(text, lines):
    assert wrapped(text, 10) == lines
