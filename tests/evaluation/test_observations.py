"""What is looked up once per picture."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.observations import Observations, missing_references, photographed
from evaluation.people import Found
from evaluation.protocol import Subject
from tests.evaluation.paper_world import SUBJECTS, World, drawn, instruments, locate


def looked(world: World, subjects: Sequence[Subject] = SUBJECTS, **changed: object) -> Observations:
    tools = replace(instruments(), **changed)  # type: ignore[arg-type]
    return Observations.of(*drawn(world), photographed(subjects, tools), tools)


def test_of_a_picture_as_many_people_are_embedded_as_the_prompt_names() -> None:
    """A crowd in the background is not asked who it is."""

    def crowd(pictures: Sequence[Image.Image]) -> list[list[Found]]:
        return [found * 3 for found in locate(pictures)]

    seen = looked(World(), locate=crowd)
    assert {len(seen.identities[cell]) for cell in seen.cells if not cell.is_pair} == {1}
    assert {len(seen.identities[cell]) for cell in seen.cells if cell.is_pair} == {2}
    assert {len(seen.people[cell]) for cell in seen.cells} == {3, 6}


def test_nobody_has_no_row_and_counts_as_zeros() -> None:
    seen = looked(World(lost=("000002",)))
    cells = [cell for cell in seen.cells if cell.names == ("000002",)]
    assert all(len(seen.identities[cell]) == 0 and seen.area(cell) == 0 for cell in cells)
    assert not seen.first_people(cells).any()


def test_where_faces_are_looked_at_the_reference_is_looked_at_before_it_was_cut() -> None:
    other = SUBJECTS[1].reference
    subjects = [replace(SUBJECTS[0], original=other), *SUBJECTS[1:]]
    by_people = photographed(subjects, instruments())
    by_faces = photographed(subjects, replace(instruments(), locate_face=locate))
    assert np.allclose(by_faces["000001"][0], by_faces["000002"][0])
    assert not np.allclose(by_people["000001"][0], by_people["000002"][0], atol=1e-4)
    assert np.allclose(by_faces["000001"][1], by_people["000001"][1])


def test_references_without_a_face_are_named() -> None:
    empty = Image.new("RGB", (32, 32))
    subjects = [SUBJECTS[0], replace(SUBJECTS[1], original=empty), replace(SUBJECTS[2], reference=empty)]
    assert missing_references(subjects, locate) == ["000002", "000003"]


def test_a_photo_without_a_person_is_compared_whole() -> None:
    blind = photographed(SUBJECTS, replace(instruments(), locate=lambda pictures: [[] for _ in pictures]))
    assert {name: len(rows) for name, rows in blind.items()} == {subject.name: 2 for subject in SUBJECTS}
    assert np.linalg.norm(blind["000001"][0]) == pytest.approx(1, abs=1e-5)
