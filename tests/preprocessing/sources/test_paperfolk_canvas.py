"""The canvas draws picture, instances and parts at once."""

import numpy as np
import pytest

from preprocessing.sources.paperfolk_canvas import INK, PAPER, PARTS, Canvas, box, hill, mix, oval


def test_a_sheet_is_in_all_three_maps() -> None:
    c = Canvas(40, parts=True)
    c.frame(0.5, 0.5, 0.5)
    c.instance = 2
    c.polygon(box(-0.5, -0.5, 0.5, 0.5), (200, 10, 10), "hat")
    red = (np.asarray(c.image) == (200, 10, 10)).all(2)
    assert c.parts is not None
    assert red.sum() in range(19 * 19, 22 * 22)
    assert ((np.asarray(c.instances) == 2) == red).all() and ((np.asarray(c.parts) == PARTS.index("hat")) == red).all()


def test_a_shadow_is_no_sheet() -> None:
    c = Canvas(40, parts=False)
    c.frame(0.5, 0.3, 0.5)
    c.instance = 1
    c.polygon(box(-0.3, -0.3, 0.3, 0.3), (10, 200, 10), shadow=0.2)
    sheet = np.asarray(c.instances) == 1
    darker = (np.asarray(c.image) != PAPER).any(2) & ~sheet
    assert darker.any() and (np.asarray(c.image)[sheet] == (10, 200, 10)).all()


def test_a_print_stays_inside_its_sheet() -> None:
    c = Canvas(40, parts=False)
    c.frame(0.5, 0.5, 1.0)
    c.inside(box(-0.2, -0.2, 0.2, 0.2), [box(-1, -0.05, 1, 0.05)], INK)
    rows, columns = np.nonzero((np.asarray(c.image) == INK).all(2))
    assert columns.min() >= 11 and columns.max() <= 29 and np.ptp(rows) <= 4
    assert not np.asarray(c.instances).any()


@pytest.mark.parametrize("power", [2.0, 4.0])
def test_an_oval_fills_its_box(power: float) -> None:
    points = np.array(oval(1.0, 2.0, 0.5, 0.25, power))
    assert np.allclose(points.min(0), (0.5, 1.75), atol=0.01) and np.allclose(points.max(0), (1.5, 2.25), atol=0.01)
    half = np.array(oval(0, 0, 1, 1, start=0.5, end=1.0))
    assert half[:, 1].max() < 1e-9  # y points down: the second half of the turn is the upper one


def test_colours_mix_and_hills_reach_below_the_picture() -> None:
    assert mix((0, 100, 200), (100, 100, 100), 0.0) == (0, 100, 200)
    assert mix((0, 100, 200), (100, 100, 100), 0.5) == (50, 100, 150)
    assert max(y for _, y in hill(-0.1, 1.1, 0.5, np.random.default_rng(0), 0.02)) > 1
