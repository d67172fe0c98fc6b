"""Group pictures and what is said of them."""

import numpy as np
import pytest

from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_groups import depth_phrasings, distant_pair, group_at, group_picture, phrasings


def test_a_group_is_the_same_whoever_asks_and_stands_from_left_to_right() -> None:
    for count in (1, 2, 3, 4):
        pictures = [group_at(3, index, count) for index in range(20)]
        assert pictures == [group_at(3, index, count) for index in range(20)]
        for picture in pictures:
            xs = [person.x for person in picture.people]
            assert len(xs) == count and xs == sorted(xs)
    with pytest.raises(ValueError, match="5 people"):
        group_picture(np.random.default_rng(0), 5)


def test_everybody_in_a_group_is_seen() -> None:
    for index in range(12):
        for count in (3, 4):
            drawing = draw(group_at(1, index, count), 64)
            areas = np.bincount(drawing.instances.ravel(), minlength=count + 1)[1:]
            assert len(areas) == count and areas.min() > 0.02 * 64 * 64
            for number, points in enumerate(drawing.landmarks, start=1):
                xs, ys = np.array(points).T.round().astype(int)
                inside = (xs >= 0) & (xs < 64) & (ys >= 0) & (ys < 64)
                assert (drawing.instances[ys[inside], xs[inside]] == number).mean() > 0.6


def test_the_far_one_of_a_pair_is_smaller() -> None:
    for index in range(20):
        near, far = sorted(distant_pair(0, index).people, key=lambda person: -person.unit)
        assert far.unit < 0.7 * near.unit


def test_a_phrasings_truth_names_everybody_once_with_their_own_word() -> None:
    for count in (1, 2, 3, 4):
        for index in range(15):
            picture = group_at(0, index, count)
            names = set()
            for phrasing in phrasings(picture, seed=5):
                names.add(phrasing.name)
                assert sorted(phrasing.people) == list(range(count)) and len(phrasing.words) == count
                for word, k in zip(phrasing.words, phrasing.people, strict=True):
                    assert word in ("person", picture.people[k].identity.word)
            assert names >= ({"listed"} if count == 1 else {"plurals", "people", "places behind", "a line"})
    picture = distant_pair(0, 0)
    for phrasing in depth_phrasings(picture):
        assert [picture.people[k].identity.word for k in phrasing.people] == list(phrasing.words)


def test_one_person_or_two_are_captioned_as_the_world_captions_them() -> None:
    for count in (1, 2):
        picture = group_at(0, 1, count)
        held = picture.people[0].held if count == 1 else ""
        listed = next(iter(phrasings(picture, seed=0)))
        assert held or listed.caption == picture.caption
