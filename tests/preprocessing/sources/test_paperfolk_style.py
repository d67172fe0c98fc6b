"""Prints: one ink, the same picture."""

import numpy as np

from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_style import as_print
from preprocessing.sources.paperfolk_world import picture_at

PIXELS = np.stack([np.asarray(draw(picture_at(5, index)).image) for index in range(6)])


def test_a_print_has_one_ink() -> None:
    prints = as_print(PIXELS).reshape(-1, 3).astype(float)
    dark, light = prints[prints.sum(1).argmin()], prints[prints.sum(1).argmax()]
    along = (light - dark) / np.linalg.norm(light - dark)
    offsets = (prints - dark) - ((prints - dark) @ along)[:, None] * along
    assert np.abs(offsets).max() < 2  # every colour lies between the ink and the paper
    assert np.linalg.norm(light - dark) > 150


def test_a_print_shows_the_same_picture() -> None:
    prints = as_print(PIXELS).astype(float).mean(-1)
    tones = PIXELS.astype(float) @ [0.3, 0.59, 0.11]
    for tone, printed in zip(tones, prints, strict=True):
        assert np.corrcoef(tone.ravel(), printed.ravel())[0, 1] > 0.8


def test_one_picture_or_many() -> None:
    assert np.array_equal(as_print(PIXELS[0]), as_print(PIXELS)[0])
