"""Two releases on the same people, prompts and seeds: the difference of every measure, picture by picture.

Both draw from the same noise, so most of what makes one picture score higher than another is in both and cancels: the
interval of the paired difference is a fraction of either release's own. It is a 95 % bootstrap over *people*, too.
"""

import math
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from evaluation.measures import Measure, Number, bootstrap, measure, measure_pairs, ratio
from evaluation.metrics import BETTER, RATIOS, Better
from evaluation.protocol import Cell
from evaluation.scores import Scores


class Difference(BaseModel):
    """One measure of two releases; `difference` is candidate minus production, over the pictures that both have."""

    model_config = ConfigDict(frozen=True)

    measure: str
    better: Better
    candidate: Number
    production: Number
    difference: Measure

    @property
    def is_worse(self) -> bool:
        """The whole interval of the difference is on the worse side."""
        return self.difference.high < 0 if self.better == "higher" else self.difference.low > 0

    @property
    def loss(self) -> float:
        """By how much the candidate is worse; negative where it is better."""
        return -self.difference.mean if self.better == "higher" else self.difference.mean


class Comparison(BaseModel):
    """A candidate beside production: how many pictures both drew, and every measure that both have."""

    pictures: int
    differences: list[Difference]

    def of(self, measure: str) -> Difference | None:
        """The measure's difference; None where one of the two does not have it."""
        return next((one for one in self.differences if one.measure == measure), None)


def compare(candidate: Scores, production: Scores) -> Comparison:
    """Pair the pictures of two releases by subjects, prompt and seed.

    ValueError where no picture is of the same ones.
    """
    first, second = _rows(candidate), _rows(production)
    shared = [key for key in first if key in second]
    if not shared:
        raise ValueError("two releases have no picture of the same subject, prompt and seed: nothing can be compared.")
    found = []
    for name, better in BETTER.items():
        compared = _ratio(candidate, production, name) if name in RATIOS else _paired(first, second, shared, name)
        if compared is not None:
            ours, theirs, between = compared
            found.append(Difference(measure=name, better=better, candidate=ours, production=theirs, difference=between))
    return Comparison(pictures=len(shared), differences=found)


def _rows(scores: Scores) -> dict[Hashable, tuple[Cell, Mapping[str, float | None]]]:
    """(subjects, prompt's text, seed) → the picture's cell and values."""
    rows: dict[Hashable, tuple[Cell, Mapping[str, float | None]]] = {}
    for place, cell in enumerate(scores.cells):
        values = {name: column[place] for name, column in scores.values.items()}
        rows[cell.names, cell.text, cell.seed] = (cell, values)
    return rows


def _paired(
    first: Mapping[Hashable, tuple[Cell, Mapping[str, float | None]]],
    second: Mapping[Hashable, tuple[Cell, Mapping[str, float | None]]],
    shared: Sequence[Hashable],
    name: str,
) -> tuple[float, float, Measure] | None:
    """The mean of both and of the difference, over the pictures in which both have the measure."""
    columns: list[dict[tuple[str, ...], list[float]]] = [{}, {}, {}]
    for key in shared:
        (cell, ours), (_, theirs) = first[key], second[key]
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None or cell.is_pair != ("pair_" in name):
            continue
        for column, value in zip(columns, (a, b, a - b), strict=True):
            column.setdefault(cell.names, []).append(value)
    candidate, production, difference = (_measured(column) for column in columns)
    if candidate is None or production is None or difference is None:
        return None
    return candidate.mean, production.mean, difference


def _measured(column: Mapping[tuple[str, ...], Sequence[float]]) -> Measure | None:
    pairs = {(names[0], names[1]): values for names, values in column.items() if len(names) == 2}
    return measure_pairs(pairs) if pairs else measure({names[0]: values for names, values in column.items()})


def _ratio(candidate: Scores, production: Scores, name: str) -> tuple[float, float, Measure] | None:
    """The difference of two ratios of means; the same resampled people in all four means."""
    columns = [scores.column(part) for scores in (candidate, production) for part in RATIOS[name]]
    people = [subject for subject in columns[0] if all(column.get(subject) for column in columns)]
    rows_S4 = np.array([[np.mean(column[subject]) for column in columns] for subject in people])
    if not people or not (rows_S4.mean(axis=0)[[1, 3]] > 0).all():
        return None
    ours, theirs = (float(ratio(rows_S4.mean(axis=0)[part])) for part in ([0, 1], [2, 3]))
    low, high = bootstrap(rows_S4, _ratio_difference)
    if math.isnan(low) or math.isnan(high):
        return None
    return ours, theirs, Measure(mean=ours - theirs, low=low, high=high, samples=len(people))


def _ratio_difference(means_K: Float[np.ndarray, "*draws K"]) -> Float[np.ndarray, "*draws"]:
    return ratio(means_K[..., :2]) - ratio(means_K[..., 2:])
