"""Two people in one picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.subject_mixing import subject_mixing

REFERENCES = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_people_in_any_order_find_their_references(order):
    mixing = subject_mixing(REFERENCES[order], REFERENCES)
    assert mixing.minimum_identity == pytest.approx(1.0)
    assert mixing.separation == pytest.approx(1.0)


def test_the_same_person_twice_is_one_reference_missed():
    mixing = subject_mixing(REFERENCES[[0, 0]], REFERENCES)
    assert mixing.minimum_identity == pytest.approx(0.0)
    assert mixing.separation == pytest.approx(0.0)


def test_two_equal_mixtures_are_not_separated():
    mixture = np.array([[1.0, 1.0, 0.0]]) / np.sqrt(2)
    mixing = subject_mixing(np.concatenate([mixture, mixture]), REFERENCES)
    assert mixing.minimum_identity == pytest.approx(np.sqrt(0.5))
    assert mixing.separation == pytest.approx(0.0)


def test_a_missing_person_makes_the_minimum_zero_but_who_is_there_is_still_compared():
    mixing = subject_mixing(REFERENCES[:1], REFERENCES)
    assert mixing.minimum_identity == 0.0
    assert mixing.separation == pytest.approx(1.0)


def test_an_empty_picture_scores_nothing():
    mixing = subject_mixing(np.zeros((0, 3)), REFERENCES)
    assert (mixing.minimum_identity, mixing.separation) == (0.0, None)


def test_without_references_it_refuses():
    with pytest.raises(ValueError, match="nobody to look for"):
        subject_mixing(REFERENCES, np.zeros((0, 3)))


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_the_order_of_people_does_not_matter_and_the_assignment_is_never_negative_for_two(seed, people):
    draws = np.random.default_rng(seed)
    found = draws.normal(size=(people, 5))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    references = np.eye(5)[:2]
    one, other = subject_mixing(found, references), subject_mixing(found[::-1], references)
    assert one.minimum_identity == pytest.approx(other.minimum_identity)
    assert one.separation == pytest.approx(other.separation)
    if people == 2:
        assert one.separation >= -1e-9
