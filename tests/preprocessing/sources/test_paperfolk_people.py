"""Whatever makes somebody somebody else can be seen."""

from dataclasses import replace

import numpy as np
import pytest

from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_people import landmarks_of
from preprocessing.sources.paperfolk_world import (
    BEARDS,
    BROWS,
    CHEEKS,
    CLOTH,
    EYES,
    FACES,
    GLASSES,
    HAIR_COLORS,
    HAIR_STYLES,
    HATS,
    LIPS,
    PATTERNS,
    SKINS,
    Identity,
    Person,
    Picture,
)

MAN = Identity(
    "man", "tan", "short", "brown", "blue", "oval", "thin", "no", "no beard", "", False, "plain", "cap", "red", "teal",
    "striped",
)  # fmt: skip
WOMAN = replace(MAN, word="woman", hair_style="bob", lips="red")
SHARED = {
    "skin": SKINS, "hair_color": HAIR_COLORS, "eyes": EYES, "face": FACES, "brows": BROWS, "glasses": GLASSES,
    "cheeks": CHEEKS, "hat": HATS, "hat_color": CLOTH, "shirt_color": CLOTH, "shirt_pattern": PATTERNS,
}  # fmt: skip
OF_MEN = {**SHARED, "hair_style": HAIR_STYLES["man"], "beard": BEARDS}
OF_WOMEN = {**SHARED, "hair_style": HAIR_STYLES["woman"], "lips": LIPS, "earrings": (False, True)}


def portrait(identity: Identity, turn: float = 0.0, held: str = "") -> Picture:
    return Picture("studio", (Person(identity, held, 0.5, 0.5, 0.45, turn, 0.5),), 1)


@pytest.mark.parametrize(("somebody", "factors"), [(MAN, OF_MEN), (WOMAN, OF_WOMEN)], ids=["man", "woman"])
def test_every_value_of_every_factor_shows(somebody: Identity, factors: dict[str, list[object]]) -> None:
    for factor, values in factors.items():
        drawn = [draw(portrait(replace(somebody, **{factor: value}))).image.tobytes() for value in values]
        assert len(set(drawn)) == len(drawn), factor


def test_men_and_women_differ_in_build() -> None:
    man, woman = draw(portrait(MAN)), draw(portrait(WOMAN))
    assert (man.instances[-1] > 0).sum() > 1.15 * (woman.instances[-1] > 0).sum()  # across the shoulders


def test_what_is_held_is_not_the_person() -> None:
    small = replace(portrait(MAN).people[0], unit=0.33, y=0.35)
    bare = draw(Picture("studio", (small,), 1))
    holding = draw(Picture("studio", (replace(small, held="book"),), 1))
    lost = (bare.instances > 0) & (holding.instances == 0)
    assert lost.sum() > 60 and np.asarray(holding.image)[lost].mean() > 150  # a book's pages


def test_the_face_turns() -> None:
    left, right = (np.array(landmarks_of(portrait(MAN, turn).people[0])) for turn in (-1.0, 1.0))
    assert (left[17:, 0] < right[17:, 0]).all() and np.allclose(left[:17], right[:17])
    assert np.allclose(left[:, 1], right[:, 1])
