"""Another person in the same scene: the background stays, the identity is the reference's."""

import numpy as np

from moa_model.applications import draw, scene_of, swap

PROMPT = "a photo of a man on the beach"


def test_the_person_changes_and_the_scene_stays(studio, men) -> None:
    cast = men[2:]
    casts = [{}, *({"man": studio.crop(man)} for man in cast)]
    prior, *swapped = swap(studio.pipe, studio.adapter, PROMPT, casts, seed=3, **studio.call)
    likeness = studio.likeness(swapped, cast)
    assert likeness.argmax(axis=1).tolist() == [0, 1]  # each like their own photo, not the other's
    assert (likeness.diagonal() > studio.likeness([prior], cast)[0] + 0.1).all()
    elsewhere = draw(studio.pipe, studio.adapter, PROMPT, {}, seed=23, **studio.call)
    changed = [studio.background(prior, picture) for picture in swapped]
    assert max(changed) < 0.5 * studio.background(prior, elsewhere)


def test_nobody_is_the_priors_own_picture(studio, men) -> None:
    prior = draw(studio.pipe, studio.adapter, PROMPT, {}, seed=3, **studio.call)
    with studio.adapter.prior_only():
        forced = draw(studio.pipe, studio.adapter, PROMPT, {"man": studio.crop(men[0])}, seed=3, **studio.call)
    assert np.array_equal(prior, forced)


def test_a_kept_scene_changes_less_and_the_person_is_as_like(studio, men) -> None:
    cast = men[2:]
    casts = [{"man": studio.crop(man)} for man in cast]
    changes, likeness = {"free": [], "kept": []}, {"free": [], "kept": []}
    for seed in (3, 5, 7):
        scene = scene_of(studio.pipe, PROMPT, seed, **studio.call)
        (prior,) = scene.images
        for how, which in (("free", None), ("kept", scene)):
            pictures = swap(studio.pipe, studio.adapter, PROMPT, casts, seed, which, **studio.call)
            changes[how] += [studio.background(prior, picture) for picture in pictures]
            likeness[how] += studio.likeness(pictures, cast).diagonal().tolist()
        assert np.array_equal(draw(studio.pipe, studio.adapter, PROMPT, {}, seed, scene, **studio.call), prior)
    assert np.mean(changes["kept"]) < 0.75 * np.mean(changes["free"])
    assert np.mean(likeness["kept"]) > np.mean(likeness["free"]) - 0.05
