import numpy as np
import pytest
from PIL import Image

from evaluation.people import Found, people_from_instances, people_mask


def test_box_of_a_mask_is_exclusive_on_the_right() -> None:
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:7] = True
    assert Found.from_mask(mask).box == (3.0, 2.0, 7.0, 5.0)
    with pytest.raises(ValueError, match="nobody"):
        Found.from_mask(np.zeros((4, 4), bool))


def test_people_of_an_instance_picture_come_largest_first() -> None:
    instances = np.zeros((8, 8), np.uint8)
    instances[:2, :2] = 1
    instances[4:, :] = 2
    people = people_from_instances(instances)
    assert [person.box for person in people] == [(0.0, 4.0, 8.0, 8.0), (0.0, 0.0, 2.0, 2.0)]
    mask = people_mask(Image.new("RGB", (8, 8)), people)
    assert np.array_equal(mask, instances > 0)


def test_a_person_without_mask_covers_the_box_inside_the_picture() -> None:
    mask = people_mask(Image.new("RGB", (6, 4)), [Found(box=(-3.0, 1.0, 2.0, 9.0))])
    expected = np.zeros((4, 6), bool)
    expected[1:, :2] = True
    assert np.array_equal(mask, expected)
    assert not people_mask(Image.new("RGB", (6, 4)), []).any()
