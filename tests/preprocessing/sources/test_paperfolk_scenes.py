"""Backdrops and held things can be told apart."""

from itertools import combinations

import numpy as np

from preprocessing.sources.paperfolk_canvas import Canvas
from preprocessing.sources.paperfolk_scenes import BACKDROPS, HELD
from preprocessing.sources.paperfolk_world import OBJECTS, SCENES


def backdrop(scene: str, variation: int) -> np.ndarray:
    c = Canvas(64, parts=False)
    BACKDROPS[scene](c, np.random.default_rng(variation))
    assert not np.asarray(c.instances).any()
    return np.asarray(c.image.reduce(8)).astype(float)


def test_every_scene_and_thing_can_be_drawn() -> None:
    assert set(BACKDROPS) == set(SCENES) and set(HELD) == set(filter(None, OBJECTS))


def test_a_scene_varies_less_than_scenes_differ() -> None:
    means = {}
    for scene in SCENES:
        several = np.stack([backdrop(scene, variation) for variation in range(6)])
        assert np.ptp(several, axis=0).max() > 0, f"{scene} is always the same"
        assert (backdrop(scene, 3) == several[3]).all()
        means[scene] = several.mean(0)
    for one, other in combinations(means, 2):
        assert np.abs(means[one] - means[other]).mean() > 20, (one, other)


def test_things_differ_and_are_nobody() -> None:
    drawn = {}
    for name, thing in HELD.items():
        c = Canvas(128, parts=True)
        c.frame(0.5, 0.3, 0.4)
        thing(c)
        assert c.parts is not None and not np.asarray(c.instances).any()
        assert (np.asarray(c.parts) > 0).mean() > 0.03
        drawn[name] = np.asarray(c.image).astype(float)
    for one, other in combinations(drawn, 2):
        assert np.abs(drawn[one] - drawn[other]).mean() > 4, (one, other)
