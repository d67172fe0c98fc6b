"""People cut out of labelled pictures."""

import numpy as np

from infra.zoo.crops import GREY, person_crop
from infra.zoo.pictures import LabelledPictures


def test_a_crop_shows_one_person_on_grey(pictures: LabelledPictures) -> None:
    rng = np.random.default_rng(0)
    for index in range(8):
        crop = person_crop(pictures, index, 1, 48, rng, keep=0.0)
        assert crop.shape == (48, 48, 3) and crop.dtype == np.uint8
        grey = (abs(crop.astype(int) - GREY) <= 2).all(2).mean()
        assert 0.05 < grey < 0.7  # neither the whole scene nor nothing of the person


def test_the_scene_can_be_kept(pictures: LabelledPictures) -> None:
    grey = [
        (person_crop(pictures, 0, 1, 48, np.random.default_rng(0), keep) == GREY).all(2).mean() for keep in (0.0, 1.0)
    ]
    assert grey[1] < grey[0] / 2


def test_the_same_random_numbers_give_the_same_crop(pictures: LabelledPictures) -> None:
    first, second = (person_crop(pictures, 3, 1, 64, np.random.default_rng(5)) for _ in range(2))
    assert (first == second).all()
