"""Intervals over training seeds and people, paired differences, values at equal identity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.claims.intervals import (
    Curve,
    at_equal_identity,
    difference,
    estimate,
    interpolated,
)


def _column(values_TP: np.ndarray) -> dict[int, dict[str, float]]:
    return {seed: {f"p{p}": float(value) for p, value in enumerate(row)} for seed, row in enumerate(values_TP)}


def test_one_seed_gives_the_bootstrap_over_people():
    values = np.random.default_rng(0).normal(size=(1, 40))
    found = estimate(_column(values))
    error = values.std() / np.sqrt(40)
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert found.seeds == 1


def test_trainings_that_differ_widen_the_interval():
    people = np.random.default_rng(1).normal(size=(1, 20))
    alike, apart = np.repeat(people, 3, axis=0), people + np.array([[-1.0], [0.0], [1.0]])
    narrow, wide = estimate(_column(alike)), estimate(_column(apart))
    assert wide.mean == pytest.approx(narrow.mean)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_difference_is_paired():
    people = np.random.default_rng(2).normal(scale=5, size=(2, 15))
    found = difference(_column(people + 0.1), _column(people))
    assert (found.low, found.high) == (pytest.approx(0.1), pytest.approx(0.1))


def test_only_what_both_have_is_compared():
    first = {0: {"a": 1.0, "b": 2.0}, 1: {"a": 9.0}}
    assert difference(first, {0: {"a": 0.0, "c": 7.0}}).mean == pytest.approx(1.0)
    assert difference(first, {5: {"a": 0.0}}) is None
    assert estimate({}) is None


def test_a_ratio_is_one_of_means():
    found = estimate({0: {"a": 1.0, "b": 3.0}}, {0: {"a": 4.0, "b": 4.0}})
    assert found.mean == pytest.approx(0.5) and found.low == pytest.approx(0.25)
    assert estimate({0: {"a": 1.0}}, {0: {"a": 0.0}}) is None


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.floats(0, 1))
def test_interpolation_stays_on_the_curve(values, level):
    x = np.sort(np.array(values))
    y = 2 * x + 1
    assert interpolated(x, y, level) == pytest.approx(2 * np.clip(level, x[0], x[-1]) + 1)


def test_at_equal_identity_the_arm_that_keeps_the_scene_wins():
    people = [f"p{p}" for p in range(8)]

    def curve(identities: list[float], changes: list[float]) -> Curve:
        columns = [[{0: dict.fromkeys(people, value)} for value in values] for values in (identities, changes)]
        return Curve(*columns)

    keeps, loses = curve([0.2, 0.4, 0.5], [0.0, 4.0, 6.0]), curve([0.2, 0.6, 0.8], [0.0, 16.0, 30.0])
    found = at_equal_identity(keeps, loses)
    assert found.level == pytest.approx(0.5)
    assert found.first.mean == pytest.approx(6.0)
    assert found.second.mean == pytest.approx(12.0)
    assert found.difference.high == pytest.approx(-6.0)
