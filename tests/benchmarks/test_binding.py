"""The measured floor, on a small sample: 98 of 100 people have their own word, in every phrasing."""

import pytest
import torch

from infra.settings import Settings, load_settings
from preprocessing.precompute import Precomputer
from preprocessing.segmentation import open_segmenter
from tests.benchmarks.binding import GOAL, as_markdown, measure, open_scorer, pictures, report, shares


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load_settings("demo")


@pytest.fixture(scope="module")
def scorer(settings: Settings) -> Precomputer:
    torch.set_num_threads(1)
    return open_scorer(settings)


def test_people_are_bound_to_the_right_word(settings: Settings, scorer: Precomputer) -> None:
    outcomes = measure(pictures(5), settings, scorer)
    table = shares(outcomes, "true")
    assert set(table) >= {"listed", "plurals", "places before", "behind", "all phrasings"}
    for count, (right, people) in table["all phrasings"].items():
        assert right / people >= GOAL, f"{count} people: {right} of {people}"
    assert "| plurals |  | " in as_markdown(outcomes, "true")


def test_found_masks_of_one_or_two_are_bound_as_well(settings: Settings, scorer: Precomputer) -> None:
    """The demo's segmenter knows no larger groups."""
    world = [(picture, told) for picture, told in pictures(8) if len(picture.people) <= 2 and told[0].name == "listed"]
    outcomes = measure(world, settings, scorer, open_segmenter(settings.models.segmenter, settings.segment))
    for right, people in shares(outcomes, "found")["all phrasings"].values():
        assert right / people >= 0.95
    assert "The demo segmenter's masks" in report(outcomes, 8, 2026)
