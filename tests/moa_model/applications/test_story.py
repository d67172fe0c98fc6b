"""Characters with names, alone and together."""

import pytest

from evaluation.identity import crop_person
from infra.errors import UserError
from moa_model.applications import Character, story, told

ANN, BEN = Character("woman", "her picture"), Character("man", "his picture")
CAST = {"Ann": ANN, "Ben": BEN, "Mary Ann": Character("woman", "another picture")}


def test_names_become_words_with_portraits() -> None:
    assert told("a photo of ann", CAST) == ("a photo of a woman", {"woman": ["her picture"]})
    prompt, subjects = told("Ben and Ann in the snow", CAST)
    assert prompt == "a man and a woman in the snow"
    assert subjects == {"man": ["his picture"], "woman": ["her picture"]}
    assert told("Mary Ann", CAST)[1] == {"woman": ["another picture"]}  # the longest name, not Ann's


def test_people_without_a_name_stay_the_priors() -> None:
    assert told("a woman beside Ann", CAST)[1] == {"woman": [None, "her picture"]}
    assert told("Ann and a woman and Annabel", CAST)[1] == {"woman": ["her picture"]}


def test_sentences_about_nobody() -> None:
    with pytest.raises(UserError, match="Nobody of the story .* name Ann"):
        told("a tree", CAST)
    with pytest.raises(UserError, match="needs characters"):
        told("a tree", {})


def test_everybody_is_recognised_in_every_panel(studio, men, women) -> None:
    cast = {"Ann": Character("woman", studio.crop(women[0])), "Ben": Character("man", studio.crop(men[3]))}
    sentences = ["a photo of Ann in a garden", "a photo of Ben and Ann in the snow", "a photo of Ben on the beach"]
    ann, both, ben = story(studio.pipe, studio.adapter, sentences, cast, seed=0, **studio.call)
    alone = studio.likeness([ann, ben], [women[0], men[3]])
    assert alone[0, 0] > alone[0, 1] + 0.1 and alone[1, 1] > alone[1, 0] + 0.1
    found = sorted(studio.people([both])[0], key=lambda person: person.box[0])
    assert len(found) == 2
    drawn = studio.identity.embed([crop_person(both, person, studio.identity.crop) for person in found])
    people = [studio.people([photo])[0][0] for photo in (men[3], women[0])]  # Ben is named first: he stands left
    photos = zip((men[3], women[0]), people, strict=True)
    references = studio.identity.embed([crop_person(photo, person, studio.identity.crop) for photo, person in photos])
    likeness = drawn @ references.T
    assert likeness[0, 0] > likeness[0, 1] and likeness[1, 1] > likeness[1, 0]
