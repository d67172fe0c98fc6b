"""Prior first: what was browsed is the scene into which people are put."""

import numpy as np

from moa_model.applications import browse, draw

PROMPT = "a photo of a man in the forest"


def test_the_picked_scene_is_kept(studio, men) -> None:
    scenes = browse(studio.pipe, PROMPT, range(3), **studio.call)
    assert list(scenes) == [0, 1, 2]
    pick = 1
    man = {"man": studio.crop(men[2])}
    injected = draw(studio.pipe, studio.adapter, PROMPT, man, seed=pick, **studio.call)
    changed = {seed: studio.background(injected, scene) for seed, scene in scenes.items()}
    assert min(changed, key=lambda seed: changed[seed]) == pick
    assert changed[pick] < 0.6 * min(changed[seed] for seed in scenes if seed != pick)
    assert studio.likeness([injected], men)[0].argmax() == 2


def test_browsing_is_the_stock_pipeline(studio) -> None:
    browsed = browse(studio.pipe, PROMPT, [1], **studio.call)[1]
    studio.adapter.detach(studio.pipe)
    try:
        stock = browse(studio.pipe, PROMPT, [1], **studio.call)[1]
    finally:
        studio.adapter.attach(studio.pipe)
    assert np.array_equal(browsed, stock)
