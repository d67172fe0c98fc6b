"""A candidate beside production, picture by picture."""

import numpy as np
import pytest

from evaluation.comparison import Comparison, Difference, compare
from evaluation.measures import Measure, measure
from evaluation.protocol import Cell
from evaluation.scores import Scores
from tests.evaluation.paper_world import World, scored


def table(values: dict[str, np.ndarray], people: int = 12, seeds: int = 8) -> Scores:
    """One measure's values [people, seeds] as a table."""
    cells = [
        Cell(subject=str(person), word="man", prompt=0, seed=seed, text="a man", group="x")
        for person in range(people)
        for seed in range(seeds)
    ]
    return Scores(cells, {name: column.ravel().tolist() for name, column in values.items()})


def test_pairing_finds_what_the_two_releases_own_intervals_hide() -> None:
    """People differ by far more than the releases: 0.02 less identity is seen all the same."""
    rng = np.random.default_rng(0)
    production = 0.5 + rng.normal(0, 0.15, (12, 1)) + rng.normal(0, 0.05, (12, 8))
    candidate = production - 0.02 + rng.normal(0, 0.01, (12, 8))
    found = compare(table({"identity": candidate}), table({"identity": production})).of("identity")
    assert found is not None and found.is_worse and found.loss == pytest.approx(0.02, abs=0.005)
    alone = [measure(table({"identity": one}).column("identity")) for one in (candidate, production)]
    assert alone[0] is not None and alone[1] is not None and alone[0].high > alone[1].low, "their intervals overlap"
    assert found.difference.high - found.difference.low < (alone[0].high - alone[0].low) / 5
    assert found.candidate - found.production == pytest.approx(found.difference.mean)


def test_two_releases_that_differ_by_chance_are_rarely_called_worse() -> None:
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(100):
        one, other = (0.5 + rng.normal(0, 0.1, (12, 4)) for _ in range(2))
        found = compare(table({"identity": one}, seeds=4), table({"identity": other}, seeds=4)).of("identity")
        assert found is not None
        called += found.is_worse
    assert called <= 9, "2.5 % are expected on one side, and a little more with twelve people"


def test_the_same_release_has_no_difference_at_all() -> None:
    scores = scored(World(shift=2))
    same = compare(scores, scores)
    assert same.pictures == len(scores.cells)
    assert {one.measure for one in same.differences} > {"identity", "background_change", "pair_identity"}
    for one in same.differences:
        assert (one.difference.mean, one.difference.low, one.difference.high) == (0, 0, 0) and not one.is_worse
    assert Comparison.model_validate_json(same.model_dump_json()) == same


def test_only_pictures_that_both_have_are_compared() -> None:
    first, second = scored(World()), scored(World(strange=("000003",)))
    known = second.where(lambda cell: "000003" not in cell.names)
    found = compare(first, known)
    assert found.pictures == len(known.cells)
    identity, pair = found.of("identity"), found.of("pair_identity")
    assert identity is not None and identity.difference.mean == 0
    assert pair is not None and pair.difference.mean == 0 and pair.difference.samples == 4
    whole = compare(first, second).of("identity")
    assert whole is not None and whole.difference.mean > 0, "where the stranger was, the first is better"
    assert found.of("unheard of") is None


def test_a_worse_background_is_one_that_changes_more() -> None:
    still, moving = scored(World()), scored(World(shift=4))
    found = compare(moving, still).of("background_change")
    assert found is not None and found.better == "lower" and found.is_worse and found.loss > 0
    back = compare(still, moving).of("background_change")
    assert back is not None and not back.is_worse and back.loss == pytest.approx(-found.loss)


def test_releases_without_a_common_picture_cannot_be_compared() -> None:
    scores = scored(World())
    with pytest.raises(ValueError, match="no picture of the same"):
        compare(scores.where(lambda cell: cell.seed == 1), scores.where(lambda cell: cell.seed == 2))


@pytest.mark.parametrize(("better", "worse"), [("higher", (-0.3, -0.1)), ("lower", (0.1, 0.3))])
def test_worse_is_the_whole_interval_on_the_worse_side(better: str, worse: tuple[float, float]) -> None:
    def found(low: float, high: float) -> Difference:
        between = Measure(mean=(low + high) / 2, low=low, high=high)
        return Difference(measure="x", better=better, candidate=0, production=0, difference=between)  # type: ignore[arg-type]

    assert found(*worse).is_worse and found(*worse).loss == pytest.approx(0.2)
    assert not found(-worse[1], -worse[0]).is_worse and found(-worse[1], -worse[0]).loss == pytest.approx(-0.2)
    assert not found(-0.1, 0.1).is_worse
