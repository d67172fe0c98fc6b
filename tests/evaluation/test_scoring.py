import numpy as np
import pytest

from evaluation.metrics import Metrics
from evaluation.protocol import Drawing, cells, draw_cells, prior_cells
from evaluation.scoring import RATIOS, score, subject_columns
from tests.evaluation.paper_world import SETTINGS, SUBJECTS, World, instruments


def run(release: World) -> Metrics:
    drawn = draw_cells(cells(SETTINGS, SUBJECTS), release, SUBJECTS)
    prior = draw_cells(prior_cells(SETTINGS, SUBJECTS), World(), SUBJECTS)
    return score(drawn, prior, SUBJECTS, SETTINGS, instruments())


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
    assert mean(lost, "people_found") == 0.75
    assert lost.identity is not None and lost.identity.low < lost.identity.mean <= lost.identity.high


def test_accuracies_are_of_prompts_that_name_something(perfect: Metrics) -> None:
    assert perfect.object_accuracy is not None and perfect.scene_accuracy is not None
    assert perfect.object_accuracy.samples == 8  # one of the two prompts names an object
    assert perfect.scene_accuracy.samples == 16
    assert -1 <= mean(perfect, "prompt_consistency") <= 1


def test_a_release_that_draws_the_prior_s_pictures_has_ratio_one() -> None:
    prior = draw_cells(prior_cells(SETTINGS, SUBJECTS), World(), SUBJECTS)
    release = {cell: prior[cell.prior] for cell in cells(SETTINGS, SUBJECTS)}
    same = score(release, prior, SUBJECTS, SETTINGS, instruments())
    assert mean(same, "identity_gain") == 0
    assert mean(same, "prior_fidelity") == 0
    for ratio in (same.scene_ratio, same.object_ratio):
        # None where the random CLIP recognised nothing at all.
        assert ratio is None or ratio.mean == 1
    assert same.router_auc is None


def test_variation_is_the_priors_for_the_priors_pictures_and_zero_for_one_picture_again_and_again() -> None:
    prior = draw_cells(prior_cells(SETTINGS, SUBJECTS), World(), SUBJECTS)
    todo = cells(SETTINGS, SUBJECTS)
    same = score({cell: prior[cell.prior] for cell in todo}, prior, SUBJECTS, SETTINGS, instruments())
    assert mean(same, "variation") == pytest.approx(mean(same, "prior_variation")) and mean(same, "variation") > 0
    stuck = score({cell: prior[todo[0].prior] for cell in todo}, prior, SUBJECTS, SETTINGS, instruments())
    assert mean(stuck, "variation") == pytest.approx(0, abs=1e-5)


def test_the_columns_are_what_the_score_summarises(perfect: Metrics) -> None:
    drawn = draw_cells(cells(SETTINGS, SUBJECTS), World(router=True), SUBJECTS)
    prior = draw_cells(prior_cells(SETTINGS, SUBJECTS), World(), SUBJECTS)
    columns = subject_columns(drawn, prior, SUBJECTS, SETTINGS, instruments())
    assert not columns.keys() & RATIOS.keys()
    for name, column in columns.items():
        if (measured := getattr(perfect, name)) is not None:
            assert measured.mean == pytest.approx(np.mean([np.mean(values) for values in column.values()]))


def test_router_maps_are_held_against_two_baselines(perfect: Metrics) -> None:
    assert mean(perfect, "router_auc") == mean(perfect, "router_iou") == 1
    assert mean(perfect, "router_contrast") == 1
    assert mean(perfect, "router_auc_centre_blob") < 1
    assert mean(perfect, "router_iou_centre_blob") < 1
    # The painted person never moves, so another picture's map is as good: that is what this baseline is there to show.
    assert mean(perfect, "router_auc_other_picture") == 1


def test_the_prior_s_pictures_are_needed() -> None:
    release = draw_cells(cells(SETTINGS, SUBJECTS), World(), SUBJECTS)
    with pytest.raises(ValueError, match="was not drawn"):
        score(release, dict[object, Drawing](), SUBJECTS, SETTINGS, instruments())  # type: ignore[arg-type]
