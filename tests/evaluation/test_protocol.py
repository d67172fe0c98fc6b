import math

import pytest

from evaluation.measures import Measure
from evaluation.metrics import Metrics
from evaluation.protocol import batches, cells, draw_cells, gate, prior_cells
from infra.settings import PublishSettings
from tests.evaluation.paper_world import SETTINGS, SUBJECTS, World

LIMITS = PublishSettings(
    alias="production",
    min_identity_gain=0.35,
    min_scene_ratio=0.95,
    min_object_ratio=0.7,
    max_background_change=0.3,
    max_identity_regression=0.03,
)


def number(value: float) -> Measure:
    return Measure(mean=value, low=value, high=value)


def metrics(**changed: float | None) -> Metrics:
    values: dict[str, float | None] = {
        "identity": 0.5,
        "identity_gain": 0.45,
        "scene_ratio": 0.99,
        "object_ratio": 0.8,
        "background_change": 0.2,
    } | changed
    measured = {name: None if value is None else number(value) for name, value in values.items()}
    return Metrics(pictures=8, subjects=4, **measured)  # type: ignore[arg-type]


def test_cells_are_every_subject_prompt_and_seed() -> None:
    found = cells(SETTINGS, SUBJECTS)
    assert len(found) == len(set(found)) == 4 * 2 * 2
    assert {cell.text for cell in found if cell.subject == "000004"} == {
        "a photo of a woman holding roses on the beach",
        "a photo of a woman in the snow",
    }
    assert found == cells(SETTINGS, SUBJECTS)


def test_the_prior_draws_each_prompt_and_seed_once_per_word() -> None:
    found = prior_cells(SETTINGS, SUBJECTS)
    assert len(found) == len(set(found)) == 2 * 2 * 2
    assert all(cell.subject is None for cell in found)
    assert {cell.prior for cell in cells(SETTINGS, SUBJECTS)} == set(found)


def test_cells_are_drawn_in_batches_and_go_back_to_their_place() -> None:
    world = World()
    todo = cells(SETTINGS, SUBJECTS)
    drawn = draw_cells(todo, world, SUBJECTS, batch_size=5)
    assert list(drawn) == todo
    assert world.sizes == [5, 5, 5, 1]
    assert [len(batch) for batch in batches(todo, 16)] == [16]
    alone = draw_cells(todo[3:4], World(), SUBJECTS)[todo[3]]
    assert alone.picture.tobytes() == drawn[todo[3]].picture.tobytes()


def test_a_good_release_is_promoted_and_every_check_says_why() -> None:
    verdict = gate(metrics(), metrics(identity=0.52), LIMITS)
    assert verdict.promote
    assert verdict.reasons == ["Every check of the gate passed."]
    assert [check.limit for check in verdict.checks] == [0.35, 0.95, 0.7, 0.3, pytest.approx(0.49)]
    assert all(f"{check.value:.3f}" in check.sentence for check in verdict.checks)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("identity_gain", 0.34, "Identity gain over the prior is 0.340; at least 0.350 is required."),
        ("scene_ratio", 0.9, "Scene accuracy relative to the prior is 0.900"),
        ("object_ratio", 0.69, "Held-object accuracy relative to the prior is 0.690"),
        ("background_change", 0.31, "at most 0.300 is required"),
        ("identity", 0.46, "Identity beside production's release is 0.460; at least 0.470 is required."),
    ],
)
def test_each_limit_stops_a_release(name: str, value: float, sentence: str) -> None:
    verdict = gate(metrics(**{name: value}), metrics(identity=0.5), LIMITS)
    assert not verdict.promote
    assert len(verdict.reasons) == 1
    assert sentence in verdict.reasons[0]


def test_exactly_at_the_limit_passes() -> None:
    at_limit = metrics(identity_gain=0.35, scene_ratio=0.95, object_ratio=0.7, background_change=0.3)
    assert gate(at_limit, None, LIMITS).promote


def test_the_first_release_has_no_production_to_beat() -> None:
    verdict = gate(metrics(), None, LIMITS)
    assert verdict.promote
    assert len(verdict.checks) == 4


def test_what_does_not_apply_passes_and_what_could_not_be_measured_fails() -> None:
    without_objects = gate(metrics(object_ratio=None), None, LIMITS)
    assert without_objects.promote
    assert "does not apply" in without_objects.checks[2].sentence
    assert not gate(metrics(identity_gain=None), None, LIMITS).promote
    assert not gate(metrics(background_change=math.inf), None, LIMITS).promote
    assert not gate(metrics(scene_ratio=math.nan), None, LIMITS).promote


def test_a_verdict_and_its_metrics_survive_json() -> None:
    before = metrics(scene_ratio=None)
    assert Metrics.model_validate_json(before.model_dump_json()) == before
    verdict = gate(before, None, LIMITS)
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict
