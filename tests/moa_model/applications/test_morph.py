"""From one person to another."""

import numpy as np
import pytest

from infra.errors import UserError
from moa_model.applications import draw, morph

PROMPT = "a photo of a man in a garden"


def test_one_person_goes_and_the_other_comes(studio, men) -> None:
    first, second = (studio.crop(men[number]) for number in (2, 3))
    frames = morph(studio.pipe, studio.adapter, PROMPT, "man", first, second, frames=5, seed=5, **studio.call)
    for frame, crop in ((frames[0], first), (frames[-1], second)):  # the ends are the two swaps themselves
        plain = draw(studio.pipe, studio.adapter, PROMPT, {"man": crop}, seed=5, **studio.call)
        assert np.array_equal(frame, plain)
    likeness = studio.likeness(frames, [men[2], men[3]])
    towards = likeness[:, 1] - likeness[:, 0]
    assert towards[0] < -0.4 and towards[-1] > 0.4
    assert (np.diff(towards) > 0).all()


def test_a_morph_has_two_ends(studio, men) -> None:
    with pytest.raises(UserError, match="at least 2"):
        morph(studio.pipe, studio.adapter, PROMPT, "man", men[0], men[1], frames=1, seed=5)
