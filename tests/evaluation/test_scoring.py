"""Every measure on painted pictures whose numbers are known."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from evaluation.instruments import Instruments
from evaluation.metrics import RATIOS, Metrics
from evaluation.observations import photographed
from evaluation.protocol import Drawings, cells, draw_cells
from evaluation.scores import Scores
from evaluation.scoring import real_photos, score_pictures
from evaluation.summary import summarise
from tests.evaluation.paper_world import SETTINGS, SUBJECTS, World, drawn, instruments, scored


def run(release: World) -> Metrics:
    tools = instruments()
    return summarise(scored(release), real_photos(photographed(SUBJECTS, tools)), tools.about)


def measured(release: Drawings, prior: Drawings, tools: Instruments) -> Metrics:
    return summarise(score_pictures(release, prior, photographed(SUBJECTS, tools), SETTINGS, tools), {}, tools.about)


@pytest.fixture(scope="module")
def perfect() -> Metrics:
    return run(World(router=True))


def mean(metrics: Metrics, name: str) -> float:
    return getattr(metrics, name).mean


def test_a_perfect_release_keeps_the_person_and_the_scene(perfect: Metrics) -> None:
    assert perfect.pictures == 16 and perfect.subjects == 4
    assert mean(perfect, "identity") == pytest.approx(1, abs=1e-4)
    assert mean(perfect, "identity_real_photos") == pytest.approx(1, abs=1e-4)
    # A random network finds everybody much alike, but not the same.
    assert mean(perfect, "prior_identity") < 0.999
    assert mean(perfect, "identity_other_person") < 0.999
    assert mean(perfect, "identity_gain") == pytest.approx(1 - mean(perfect, "prior_identity"), abs=1e-4)
    assert set(perfect.identity_by_subject) == {subject.name for subject in SUBJECTS}
    assert mean(perfect, "background_change") == 0
    assert mean(perfect, "swap_difference") == 0
    assert mean(perfect, "seed_difference") > 5
    assert mean(perfect, "prior_fidelity") == 0
    assert mean(perfect, "prior_seed_difference") == pytest.approx(mean(perfect, "seed_difference"))


def test_the_subject_s_area_stands_beside_its_identity(perfect: Metrics) -> None:
    assert mean(perfect, "subject_area") == mean(perfect, "prior_subject_area") == pytest.approx(24 * 12 / 32**2)
    assert mean(perfect, "people_found") == 1


def test_a_scene_that_moves_with_the_subject_is_seen() -> None:
    moved = run(World(shift=4))
    # Same-word pairs only: subjects 1 and 2 differ by 4 grey levels, 3 and 4 by 4.
    assert mean(moved, "swap_difference") == pytest.approx(4, rel=0.02)
    assert mean(moved, "background_change") == pytest.approx(4 / mean(moved, "seed_difference"), rel=0.02)
    assert mean(moved, "prior_fidelity") == pytest.approx(4 * (1 + 2 + 3 + 4) / 4, rel=0.02)


def test_a_lost_person_scores_zero_and_is_counted() -> None:
    lost = run(World(lost=("000001",)))
    assert lost.identity_by_subject["000001"] == 0
    assert mean(lost, "identity") == pytest.approx(0.75, abs=1e-4)
    assert mean(lost, "people_found") == mean(lost, "face_found") == 0.75
    assert lost.faces_missing == 4 and run(World()).faces_missing == 0
    assert lost.identity is not None and lost.identity.low < lost.identity.mean <= lost.identity.high


def test_accuracies_are_of_prompts_that_name_something(perfect: Metrics) -> None:
    assert perfect.object_accuracy is not None and perfect.scene_accuracy is not None
    assert perfect.object_accuracy.samples == 8  # one of the two prompts names an object
    assert perfect.scene_accuracy.samples == 16
    assert -1 <= mean(perfect, "prompt_consistency") <= 1


def test_a_release_that_draws_the_prior_s_pictures_has_ratio_one() -> None:
    _, prior = drawn(World())
    release = {cell: prior[cell.prior] for cell in cells(SETTINGS, SUBJECTS)}
    same = measured(release, prior, instruments())
    assert mean(same, "identity_gain") == 0
    assert mean(same, "prior_fidelity") == 0
    for ratio in (same.scene_ratio, same.object_ratio):
        # None where the random CLIP recognised nothing at all.
        assert ratio is None or ratio.mean == 1
    assert same.router_auc is None


def test_variation_is_the_priors_for_the_priors_pictures_and_zero_for_one_picture_again_and_again() -> None:
    _, prior = drawn(World())

    todo = cells(SETTINGS, SUBJECTS)
    same = measured({cell: prior[cell.prior] for cell in todo}, prior, instruments())
    assert mean(same, "variation") == pytest.approx(mean(same, "prior_variation")) and mean(same, "variation") > 0
    stuck = measured({cell: prior[todo[0].prior] for cell in todo}, prior, instruments())
    assert mean(stuck, "variation") == pytest.approx(0, abs=1e-5)


def test_the_columns_are_what_the_summary_summarises(perfect: Metrics) -> None:
    found = scored(World(router=True))
    assert not found.values.keys() & RATIOS.keys()
    for name in found.values.keys() & Metrics.model_fields.keys():
        column = found.pair_column(name) if "pair_" in name else found.column(name)
        measured = getattr(perfect, name)
        assert measured.mean == pytest.approx(np.mean([np.mean(values) for values in column.values()])), name


def test_router_maps_are_held_against_two_baselines(perfect: Metrics) -> None:
    assert mean(perfect, "router_auc") == mean(perfect, "router_iou") == 1
    assert mean(perfect, "router_contrast") == 1
    assert mean(perfect, "router_auc_centre_blob") < 1
    assert mean(perfect, "router_iou_centre_blob") < 1
    # The painted person never moves, so another picture's map is as good: that is what this baseline is there to show.
    assert mean(perfect, "router_auc_other_picture") == 1


def test_prompt_by_prompt_gives_the_same_table() -> None:
    """So that an evaluation can be measured on as many machines as it was drawn on."""
    release, prior = drawn(World(shift=2, router=True, lost=("000002",)))
    tools = instruments()
    photos = photographed(SUBJECTS, tools)
    whole = score_pictures(release, prior, photos, SETTINGS, tools)
    parts = []
    for prompt in (2, 0, 1):
        some = {cell: drawing for cell, drawing in release.items() if cell.prompt == prompt}
        parts.append(score_pictures(some, prior, photos, SETTINGS, tools))
    again = Scores.joined([Scores.from_parquet(part.to_parquet()) for part in parts])
    assert list(again.cells) == list(whole.cells) and again.values.keys() == whole.values.keys()
    for name, column in whole.values.items():
        assert again.values[name] == pytest.approx(column, abs=1e-5), name


def test_the_prior_s_pictures_are_needed() -> None:
    release = draw_cells(cells(SETTINGS, SUBJECTS), World(), SUBJECTS)
    with pytest.raises(ValueError, match="was not drawn"):
        measured(release, {}, instruments())


def test_two_people_who_look_like_their_references(perfect: Metrics) -> None:
    assert perfect.pairs == 3 and perfect.pair_pictures == 3 * 2 and perfect.pictures == 16
    assert mean(perfect, "pair_people_found") == 1
    assert mean(perfect, "pair_prior_fidelity") == 0, "the scene is the prior's"
    assert mean(perfect, "pair_identity") == pytest.approx(1, abs=1e-4)
    assert mean(perfect, "prior_pair_identity") < 0.9999
    # The right reference is matched, so this is 1 less what the other person's scores.
    assert 0 < mean(perfect, "pair_separation") < 1
    assert -1 <= mean(perfect, "pair_prompt_consistency") <= 1


def test_of_two_people_the_worse_one_counts(perfect: Metrics) -> None:
    strange = run(World(strange=("000002",)))
    assert mean(strange, "pair_identity") < mean(perfect, "pair_identity") - 1e-3
    found = scored(World(strange=("000002",))).pair_column("pair_identity")
    assert {pair for pair, values in found.items() if min(values) < 0.9999} == {("000001", "000002")}


def test_a_pair_of_which_one_is_missing_scores_zero_and_is_counted() -> None:
    lost = run(World(lost=("000001",)))
    assert mean(lost, "pair_people_found") == pytest.approx(1 / 3), "two of the three pairs have lost somebody"
    values = scored(World(lost=("000001",))).pair_column("pair_identity")
    assert [pair for pair, found in values.items() if found != [0.0, 0.0]] == [("000003", "000004")]


def test_pairs_do_not_count_among_the_pictures_of_one_subject() -> None:
    found = scored(World())
    alone = found.where(lambda cell: not cell.is_pair)
    for name in found.values:
        if "pair_" not in name:
            assert alone.column(name) == found.column(name)
            assert not found.pair_column(name)


def test_what_the_safety_checker_flags_is_counted_of_all_pictures() -> None:
    class Nervous:
        def flagged(self, pictures: list[Image.Image]) -> list[bool]:
            return [place % 2 == 0 for place in range(len(pictures))]

    metrics = measured(*drawn(World()), replace(instruments(), safety=Nervous()))
    assert metrics.pictures_flagged == 11 and run(World()).pictures_flagged is None
