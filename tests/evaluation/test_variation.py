"""Variation over seeds."""

import numpy as np
import pytest

from evaluation.variation import variation


def test_each_picture_has_its_mean_distance_to_the_others():
    distances = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]])
    found = variation(distances)
    assert found.tolist() == [1.5, 2.0, 2.5]
    assert found.mean() == pytest.approx(distances[np.triu_indices(3, k=1)].mean()), "and their mean is the pairs'"


def test_equal_pictures_do_not_vary():
    assert variation(np.zeros((3, 3))).tolist() == [0.0, 0.0, 0.0]


def test_one_picture_has_no_variation():
    assert variation(np.zeros((1, 1))) is None
