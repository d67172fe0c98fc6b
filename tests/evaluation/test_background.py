"""What happens outside the people."""

import numpy as np
import pytest
from PIL import Image

from evaluation.background import background_difference
from evaluation.people import Found


def test_difference_is_in_grey_levels_outside_both_people() -> None:
    first = np.full((8, 8, 3), 100, np.uint8)
    second = first.copy()
    first[:4, :4] = 0  # the first picture's person
    second[4:, 4:] = 255  # the second picture's
    second[0, 7] = 140  # one of the 32 pixels left
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :4, :4] = masks[1, 4:, 4:] = True
    found = background_difference(
        Image.fromarray(first), Image.fromarray(second), [Found.from_mask(masks[0])], [Found.from_mask(masks[1])]
    )
    assert found == pytest.approx(40 / 32)


def test_without_people_the_whole_picture_counts() -> None:
    black, grey = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (10, 20, 30))
    assert background_difference(black, grey, [], []) == pytest.approx(20)


def test_people_who_fill_the_picture_leave_nothing_to_compare() -> None:
    image = Image.new("RGB", (8, 8))
    assert background_difference(image, image, [Found(box=(0.0, 0.0, 8.0, 8.0))], []) is None
    with pytest.raises(ValueError, match="cannot be compared"):
        background_difference(image, Image.new("RGB", (4, 4)), [], [])
