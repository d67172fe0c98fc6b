"""Masks that come with a photo, cut to its square."""

import numpy as np
import pytest

from preprocessing.photos import Crop, PhotoRefused, Reason
from preprocessing.prepared import MASK_SOURCE, Prepared, PreparedSubject, prepared_part
from preprocessing.shards import Sample, decode_instances, encode_json


def test_people_are_numbered_from_left_to_right_and_cut_with_the_square() -> None:
    ids = np.zeros((40, 80), np.int32)
    ids[10:30, 60:70], ids[10:30, 26:36], ids[:, :5] = 1, 2, 3
    subjects = (PreparedSubject(1, 0, 3), PreparedSubject(2, 4, 7), PreparedSubject(3, 8, 11))
    about, png = Prepared("one two six", subjects, ids).cropped(Crop(20, 0, 40, 20), (80, 40))
    assert about["people"] == [{"instance": 1, "score": 1.0, "box": [3.0, 5.0, 8.0, 15.0], "area": 0.125}]
    assert about["binding"] == [{"instance": 1, "word": "two", "start": 4, "end": 7}], (
        "who is not in the square is nobody"
    )
    assert decode_instances(png).sum() == 50


def test_a_square_that_is_the_picture_changes_no_pixel() -> None:
    ids = np.random.default_rng(0).integers(0, 3, (16, 16))
    subjects = (PreparedSubject(1, 0, 1), PreparedSubject(2, 2, 3))
    about, png = Prepared("a b", subjects, ids).cropped(Crop(0, 0, 16, 16), (16, 16))
    order = [one["word"] for one in sorted(about["binding"], key=lambda one: one["instance"])]
    numbers = {"a": 1, "b": 2}
    instances = decode_instances(png)
    for place, word in enumerate(order, start=1):
        assert ((instances == place) == (ids == numbers[word])).all()


def test_masks_of_another_size_are_refused() -> None:
    prepared = Prepared("a", (PreparedSubject(1, 0, 1),), np.ones((10, 12), int))
    with pytest.raises(PhotoRefused, match="12 x 10") as caught:
        prepared.cropped(Crop(0, 0, 10, 10), (10, 12))
    assert caught.value.reason == Reason.SIZE_MISMATCH


def test_only_samples_that_say_so_are_prepared() -> None:
    assert MASK_SOURCE == "source"
    assert prepared_part(Sample("k", {"json": encode_json({"prepared": None})})) is None
    assert prepared_part(Sample("k", {"json": encode_json({})})) is None
    assert prepared_part(Sample("k", {"json": encode_json({"prepared": {"caption": "x"}})})) == {"caption": "x"}
