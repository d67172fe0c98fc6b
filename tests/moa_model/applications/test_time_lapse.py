"""One face while a word becomes another."""

import numpy as np
import pytest

from infra.errors import UserError
from moa_model.applications import draw, time_lapse

PROMPT = "a photo of a man in the city at night"


def test_from_word_to_word(studio, men) -> None:
    man = studio.crop(men[0])
    frames = time_lapse(studio.pipe, studio.adapter, PROMPT, ("man", "woman"), man, frames=4, seed=5, **studio.call)
    ends = [
        draw(studio.pipe, studio.adapter, PROMPT.replace("man", word), {word: man}, seed=5, **studio.call)
        for word in ("man", "woman")
    ]
    assert np.array_equal(frames[0], ends[0]) and np.array_equal(frames[-1], ends[1])
    pixels = np.stack([np.asarray(frame, np.float32) for frame in frames])
    far = [np.abs(pixels - pixels[end]).mean(axis=(1, 2, 3)) for end in (0, -1)]
    assert (np.diff(far[0]) > 0).all() and (np.diff(far[1]) < 0).all()  # every frame is further on the way
    # The scene is one scene: the way's two ends differ less outside the person than two seeds do.
    other = draw(studio.pipe, studio.adapter, PROMPT, {}, seed=25, **studio.call)
    assert studio.background(frames[0], frames[-1]) < 0.8 * studio.background(frames[0], other)


def test_words_that_do_not_fit(studio, men) -> None:
    def lapse(words: tuple[str, str], frames: int = 3) -> None:
        time_lapse(studio.pipe, studio.adapter, PROMPT, words, men[0], frames, seed=5)

    with pytest.raises(UserError, match='"kid" is not in the prompt'):
        lapse(("kid", "person"))
    with pytest.raises(UserError, match="number of tokens"):
        lapse(("man", "grandmother"))
    with pytest.raises(UserError, match="at least 2"):
        lapse(("man", "woman"), frames=1)
