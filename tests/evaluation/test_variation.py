"""Variation over seeds."""

import numpy as np
import pytest

from evaluation.variation import variation


def test_equal_pictures_do_not_vary_and_orthogonal_ones_vary_by_one():
    same = np.tile(np.array([[0.6, 0.8]]), (3, 1))
    assert variation(same) == pytest.approx(0.0)
    assert variation(np.eye(3)) == pytest.approx(1.0)


def test_it_is_the_mean_over_all_pairs():
    images = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert variation(images) == pytest.approx(2 / 3)


def test_one_picture_has_no_variation():
    assert variation(np.ones((1, 4))) is None
