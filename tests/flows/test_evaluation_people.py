"""Whom releases are evaluated on."""

from pathlib import Path

import pytest
from PIL import Image

from flows.evaluation_people import read_people
from flows.painting import as_subjects, from_png
from flows.run import Run
from infra.errors import UserError, UserNotice
from infra.settings import Settings
from preprocessing.forgetting import find_person, forget
from tests.tiny_world import tiny_settings, write_models, write_people


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people, women and men in turn, with two photos each; the first one's is no square."""
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    write_people(root / "celeba")
    place = root / "celeba" / "img_celeba" / "000001.png"
    wide = Image.new("RGB", (90, 60), "grey")
    wide.paste(Image.open(place), (50, 20))
    wide.save(place)
    return root


def named(world: Path, workspace: Path, people: str, subjects: int = 4) -> Settings:
    return tiny_settings(world, workspace, {"evaluate.people": people, "evaluate.subjects": str(subjects)})


def test_whoever_comes_is_taken_women_and_men_in_turn(world: Path, tmp_path: Path) -> None:
    people = read_people(Run(named(world, tmp_path, "[]", 3)))
    assert [(one["name"], one["word"]) for one in people] == [("1", "woman"), ("2", "man"), ("3", "woman")]


def test_those_who_are_named_come_in_their_order_and_with_their_words(world: Path, tmp_path: Path) -> None:
    names = '[{identity = "4", word = "person"}, {identity = "1", word = "woman"}, {identity = "2", word = "man"}]'
    people = read_people(Run(named(world, tmp_path, names, 2)))
    assert [(one["name"], one["word"]) for one in people] == [("4", "person"), ("1", "woman")]


def test_somebody_named_who_is_not_there_is_one_sentence(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no photo with a word of 99 \(1 of .* evaluate.people .*\[\] for any"):
        read_people(Run(named(world, tmp_path, '[{identity = "1", word = "man"}, {identity = "99", word = "man"}]')))


def test_whoever_asked_to_be_forgotten_is_left_out_with_a_notice(world: Path, tmp_path: Path) -> None:
    settings = named(world, tmp_path, '[{identity = "3", word = "woman"}, {identity = "2", word = "man"}]')
    run = Run(settings)
    before = {one["name"] for one in read_people(run)}
    forget(run.store, run.catalog, find_person(run.store, run.catalog, "celeba:3"), "asked")
    with pytest.warns(UserNotice, match="3 asked to be forgotten"):
        people = read_people(Run(settings))
    assert before == {"3", "2"} and [one["name"] for one in people] == ["2"]


def test_the_original_is_the_reference_before_it_was_cut(world: Path, tmp_path: Path) -> None:
    people = read_people(Run(named(world, tmp_path, "[]")))
    original, reference = from_png(people[0]["original"]), from_png(people[0]["photos"][0])
    assert original.size == (90, 60) and reference.size == (32, 32)
    subject = as_subjects(people)[0]
    assert subject.original is not None and subject.original.tobytes() == original.tobytes()
    assert len(subject.others) == 1
