"""Poses: where somebody is and what they hold up, and nothing of who they are."""

from dataclasses import replace

import numpy as np

from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_pose import draw_pose, draw_poses
from preprocessing.sources.paperfolk_world import Picture, picture_at, random_identity


def _people(count: int) -> list[Picture]:
    return [picture for picture in (picture_at(5, index) for index in range(40)) if len(picture.people) == count]


def test_a_pose_lies_on_its_person() -> None:
    for picture in _people(1):
        drawn = np.asarray(draw_pose(picture)).any(axis=-1)
        people = draw(picture).instances > 0
        bones_outside = drawn & ~people
        if not picture.people[0].held:  # what is held is not the person, but the arms are drawn over it
            assert bones_outside.sum() < 0.25 * drawn.sum()  # the round head of somebody with a narrow face
        columns = np.nonzero(people)[1]
        assert abs(np.nonzero(drawn)[1].mean() - columns.mean()) < 3


def test_a_pose_does_not_tell_who_it_is() -> None:
    picture = next(picture for picture in _people(1) if picture.people[0].held)
    person = picture.people[0]
    rng = np.random.default_rng(0)
    others = [random_identity(rng) for _ in range(20)]
    same_build = [who for who in others if who.word == person.identity.word][:3]
    poses = [draw_pose(replace(picture, people=(replace(person, identity=who),))) for who in same_build]
    assert all(np.array_equal(pose, draw_pose(picture)) for pose in poses)
    elsewhere = draw_pose(replace(picture, people=(replace(person, x=person.x + 0.1),)))
    assert not np.array_equal(elsewhere, draw_pose(picture))


def test_arms_of_those_who_hold_something() -> None:
    person = _people(1)[0].people[0]
    bare, full = (np.asarray(draw_pose(Picture("snow", (replace(person, held=held),), 0))) for held in ("", "roses"))
    yellow = [((pose[..., 0] > 200) & (pose[..., 1] > 150) & (pose[..., 2] < 60)).sum() for pose in (bare, full)]
    assert yellow[0] == 0 and yellow[1] > 20


def test_couples_and_sizes() -> None:
    couple = _people(2)[0]
    columns = np.asarray(draw_pose(couple)).any(axis=(0, -1))
    assert columns[:32].any() and columns[32:].any()
    assert draw_pose(couple, 128).size == (128, 128)
    assert draw_poses([couple, couple]).shape == (2, 64, 64, 3)
