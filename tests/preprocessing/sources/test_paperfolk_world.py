"""The world before it is drawn: people, poses and captions."""

import re

import numpy as np

from preprocessing.sources.paperfolk_world import (
    HAIR_STYLES,
    OBJECTS,
    SCENES,
    Identity,
    identity_count,
    picture_at,
    random_identity,
    random_picture,
)


def identity(**changes: object) -> Identity:
    plain: dict[str, object] = dict(
        word="woman", skin="tan", hair_style="long", hair_color="pink", eyes="blue", face="oval", brows="thin",
        glasses="no", beard="no beard", lips="red", earrings=False, cheeks="plain", hat="no", hat_color="",
        shirt_color="red", shirt_pattern="plain",
    )  # fmt: skip
    return Identity(**{**plain, **changes})  # type: ignore[arg-type]


def test_a_picture_is_the_same_whatever_was_asked_before() -> None:
    forwards = [picture_at(5, index) for index in range(40)]
    backwards = [picture_at(5, index) for index in reversed(range(40))]
    assert forwards == backwards[::-1]
    assert picture_at(5, 17) == forwards[17] != picture_at(6, 17)


def test_there_are_people_enough() -> None:
    assert identity_count() >= 100_000
    rng = np.random.default_rng(0)
    drawn = {random_identity(rng) for _ in range(20_000)}
    # With N equally likely people, n draws meet about n² / 2N of them twice; many more would betray a smaller world.
    assert len(drawn) > 19_900


def test_every_factor_varies_and_fits_the_person() -> None:
    rng = np.random.default_rng(1)
    people = [random_identity(rng) for _ in range(2000)]
    for factor in Identity.__dataclass_fields__:
        assert len({getattr(person, factor) for person in people}) >= 2, factor
    for person in people:
        assert person.hair_style in HAIR_STYLES[person.word]
        assert (person.hat == "no") == (person.hat_color == "")
        assert (person.lips != "") == (person.word == "woman")
        assert person.word == "man" or (person.beard == "no beard")
        assert person.word == "woman" or not person.earrings


def test_captions_follow_their_grammar() -> None:
    things, scenes = "|".join(filter(None, OBJECTS.values())), "|".join(SCENES.values())
    one = re.compile(rf"a photo of a (man|woman)( holding ({things}))? ({scenes})")
    two = re.compile(rf"a photo of a (man|woman) and a (man|woman) ({scenes})")
    seen = set()
    for index in range(600):
        picture = picture_at(0, index)
        match = (one if len(picture.people) == 1 else two).fullmatch(picture.caption)
        assert match, picture.caption
        assert [person.identity.word for person in picture.people] == re.findall(r"\b(man|woman)\b", picture.caption)
        assert picture.caption.endswith(SCENES[picture.scene])
        assert [person.x for person in picture.people] == sorted(person.x for person in picture.people)
        seen.add((picture.scene, picture.people[0].held, len(picture.people)))
    assert {scene for scene, _, _ in seen} == set(SCENES)
    assert {held for _, held, _ in seen} == set(OBJECTS)


def test_a_phrase_about_looks_says_what_is_there() -> None:
    assert identity().appearance == "a woman with tan skin, long pink hair and a plain red shirt"
    dressed = identity(glasses="round", hat="top", hat_color="blue").appearance
    assert dressed == "a woman with tan skin, long pink hair, round glasses, a blue top hat and a plain red shirt"
    bald = identity(word="man", hair_style="bald", beard="goatee", lips="")
    assert bald.appearance == "a man with tan skin, no hair, a goatee and a plain red shirt"


def test_close_ups_and_pairs_can_be_asked_for() -> None:
    rng = np.random.default_rng(0)
    who = identity()
    close = [random_picture(rng, (who,), close=1.0) for _ in range(50)]
    assert all(picture.people[0].held == "" and picture.people[0].unit >= 0.42 for picture in close)
    assert all(len(picture_at(0, index, pair=1.0).people) == 2 for index in range(20))
    assert all(len(picture_at(0, index, pair=0.0).people) == 1 for index in range(20))
