import json
import math

import numpy as np
import pytest

from evaluation.measures import (
    Measure,
    bootstrap,
    bootstrap_pairs,
    measure,
    measure_pairs,
    measure_ratio,
    ratio,
    roc_auc,
)


def test_measure_averages_subjects_not_pictures() -> None:
    # One subject with many pictures must not outvote the others.
    found = measure({"a": [1.0] * 9, "b": [0.0]})
    assert found is not None
    assert found.mean == 0.5
    assert found.samples == 10
    assert found.std == pytest.approx(0.3)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(0.5, 0.1, size=(24, 1)), draws=400)
        covered += low <= 0.5 <= high
    assert 0.85 <= covered / 200 <= 0.99


def test_interval_is_the_same_every_time_and_a_point_for_one_subject() -> None:
    values = {"a": [0.1, 0.2], "b": [0.4], "c": [0.9]}
    assert measure(values) == measure(values)
    alone = measure({"a": [0.1, 0.3]})
    assert alone is not None
    assert alone.low == alone.high == pytest.approx(alone.mean)


def test_an_interval_of_pairs_covers_the_true_mean_although_pairs_share_people() -> None:
    """Each person shifts all their pairs: resampling pairs as if they were independent would cover half as often."""
    rng = np.random.default_rng(0)
    people_P2 = np.array([(a, b) for a in range(15) for b in range(a)])
    covered = naive = 0
    for _ in range(100):
        shift = rng.normal(0, 0.1, 15)
        rows_P = 0.5 + shift[people_P2].sum(axis=1) + rng.normal(0, 0.05, len(people_P2))
        low, high = bootstrap_pairs(rows_P, people_P2, draws=300)
        covered += low <= 0.5 <= high
        low, high = bootstrap(rows_P[:, None], draws=300)
        naive += low <= 0.5 <= high
    assert covered >= 85 > 75 > naive


def test_pairs_average_each_pairs_own_mean() -> None:
    found = measure_pairs({("a", "b"): [1.0] * 9, ("a", "c"): [0.0]})
    assert found is not None
    assert (found.mean, found.samples) == (0.5, 10) and found.low == 0.0 and found.high == 1.0
    alone = measure_pairs({("a", "b"): [0.25]})
    assert alone is not None and alone.low == alone.high == 0.25
    assert measure_pairs({}) is None and measure_pairs({("a", "b"): []}) is None
    with pytest.raises(ValueError, match="at least one pair"):
        bootstrap_pairs(np.zeros(0), np.zeros((0, 2), int))


def test_nothing_measured_is_none() -> None:
    assert measure({}) is None
    assert measure({"a": []}) is None
    assert measure_ratio({"a": [1.0]}, {"b": [1.0]}) is None
    assert measure_ratio({"a": [0.0]}, {"a": [0.0]}) is None
    with pytest.raises(ValueError, match="at least one subject"):
        bootstrap(np.zeros((0, 1)))


def test_ratio_is_of_means_and_infinite_over_zero() -> None:
    found = measure_ratio({"a": [1.0], "b": [3.0]}, {"a": [4.0], "b": [4.0], "c": [100.0]})
    assert found is not None
    assert found.mean == 0.5
    assert found.low == 0.25 and found.high == 0.75
    infinite = measure_ratio({"a": [1.0]}, {"a": [0.0]})
    assert infinite is not None and math.isinf(infinite.mean) and not math.isnan(infinite.high)
    assert ratio(np.array([[1.0, 2.0], [0.0, 0.0]])).tolist() == [0.5, 0.0]


def test_an_infinite_ratio_survives_json() -> None:
    # The mean is finite, but among the resampled subjects are draws that have b alone.
    found = measure_ratio({"a": [1.0], "b": [1.0]}, {"a": [1.0], "b": [0.0]})
    assert found is not None and found.mean == 2 and math.isinf(found.high)
    written = json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert '"high": null' in written and Measure.model_validate_json(written) == found


def test_roc_auc_counts_ties_half() -> None:
    truth = np.array([True, False, True, False])
    assert roc_auc(np.array([2.0, 1.0, 3.0, 0.0]), truth) == 1.0
    assert roc_auc(np.zeros(4), truth) == 0.5
    assert roc_auc(np.zeros(4), np.ones(4, bool)) is None
