"""Mask overlap against the truth, by hand."""

import numpy as np

from flows.truth import person_overlaps


def _map(*columns: slice) -> np.ndarray:
    instances = np.zeros((4, 12), np.uint8)
    for number, place in enumerate(columns, start=1):
        instances[:, place] = number
    return instances


def test_numbers_need_not_agree() -> None:
    assert person_overlaps(_map(slice(0, 4), slice(6, 10)), _map(slice(6, 10), slice(0, 4))) == [1.0, 1.0]


def test_partial_overlap_and_a_missed_person() -> None:
    # Three of five columns in common, and nobody for the second.
    assert person_overlaps(_map(slice(0, 4), slice(8, 12)), _map(slice(1, 5))) == [0.6, 0.0]


def test_one_found_person_serves_one_true_person() -> None:
    scores = person_overlaps(_map(slice(0, 4), slice(4, 8)), _map(slice(0, 8)))
    assert sorted(scores) == [0.0, 0.5]


def test_nobody_found_and_nobody_there() -> None:
    assert person_overlaps(_map(slice(0, 4)), _map()) == [0.0]
    assert person_overlaps(_map(), _map(slice(0, 4))) == []
