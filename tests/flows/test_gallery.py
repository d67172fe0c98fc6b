"""The gallery: its people are nobody's training pictures, and its page shows every picture."""

import re
from pathlib import Path

from flows.gallery import PEOPLE, portrait
from preprocessing.sources.paperfolk import identity_name
from preprocessing.sources.paperfolk_world import picture_at

ROOM = Path(__file__).parents[2] / "moa_model" / "applications"


def test_people_have_the_sex_and_the_face_that_their_number_says() -> None:
    faces = [portrait(number, word).tobytes() for _, word, number in PEOPLE]
    assert len(set(faces)) == len(PEOPLE)
    assert portrait(2, "man").tobytes() == faces[0]


def test_the_page_shows_all_pictures_and_names_all_commands() -> None:
    page = (ROOM / "README.md").read_text("utf-8")
    shown = set(re.findall(r"\(pictures/([a-z-]+\.png)\)", page))
    assert shown == {path.name for path in (ROOM / "pictures").iterdir()}
    for command in (
        "swap",
        "browse",
        "morph",
        "timelapse",
        "story",
        "routers",
        "generate --control",
        "generate --lora",
    ):
        assert f"moa {command}" in page
    for file in ROOM.glob("*.py"):
        assert file.name == "__init__.py" or f"`{file.name}`" in page


def test_held_out_photos_are_of_other_people_than_the_training_ones() -> None:
    names = [{identity_name(p.identity) for i in range(300) for p in picture_at(seed, i).people} for seed in (1, 2)]
    assert not names[0] & names[1]
