"""Means with 95 % intervals over training seeds and people, differences between arms, and values at equal identity.

Every training seed is drawn for the same people, so the two are crossed, not nested: each bootstrap draw resamples the
seeds and, independently, the people, and takes the mean of the cells that this gives. With one training seed the
interval is over people alone and says nothing about the luck of a training. Two arms are compared on the same draw of
seeds and people: their difference is paired.

Axes: T training seeds, P people, R bootstrap draws, K points of a curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DRAWS = 4000
Values = Mapping[int, Mapping[str, float]]
"""Training seed → person → mean of the person's pictures."""


@dataclass(frozen=True)
class Estimate:
    """A mean, its 95 % interval, and over how many training seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    def text(self, digits: int = 2) -> str:
        """0.52 [0.49, 0.55]"""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


class Resampling:
    """Bootstrap draws for some training seeds and people, the same for everything that is asked of them."""

    def __init__(self, seeds: Sequence[int], people: Sequence[str], draws: int = DRAWS) -> None:
        self.seeds, self.people = list(seeds), list(people)
        generator = np.random.default_rng(0)
        self._seed_RT = _counts(generator, len(self.seeds), draws)
        self._person_RP = _counts(generator, len(self.people), draws)

    @classmethod
    def of(cls, *columns: Values) -> "Resampling":
        """For the seeds and people that all columns have."""
        seeds = set.intersection(*(set(column) for column in columns))
        people = set.intersection(*(set(column[seed]) for column in columns for seed in seeds)) if seeds else set()
        return cls(sorted(seeds), sorted(people))

    def __bool__(self) -> bool:
        return bool(self.seeds and self.people)

    def means(self, column: Values) -> tuple[float, Float[np.ndarray, " R"]]:
        """The mean, and the mean in every draw."""
        value_TP = np.array([[column[seed][person] for person in self.people] for seed in self.seeds])
        total_R = np.einsum("rt,tp,rp->r", self._seed_RT, value_TP, self._person_RP)
        return float(value_TP.mean()), total_R / (len(self.seeds) * len(self.people))

    def estimate(self, mean: float, draws_R: Float[np.ndarray, " R"]) -> Estimate:
        """With the percentiles of the draws."""
        low, high = np.percentile(draws_R, [2.5, 97.5])
        return Estimate(mean, float(low), float(high), len(self.seeds))


def _counts(generator: np.random.Generator, size: int, draws: int) -> Float[np.ndarray, "R size"]:
    """How often each item is in each draw with replacement."""
    if not size:
        return np.zeros((draws, 0))
    return generator.multinomial(size, np.full(size, 1 / size), size=draws).astype(float)


def estimate(top: Values, bottom: Values | None = None) -> Estimate | None:
    """The mean of a column, or the ratio of two columns' means; None where there is nothing to take it of."""
    resampling = Resampling.of(top) if bottom is None else Resampling.of(top, bottom)
    if not resampling:
        return None
    mean, draws_R = resampling.means(top)
    if bottom is None:
        return resampling.estimate(mean, draws_R)
    below, below_R = resampling.means(bottom)
    if below <= 0:
        return None
    return resampling.estimate(mean / below, draws_R / np.maximum(below_R, 1e-12))


def difference(first: Values, second: Values) -> Estimate | None:
    """Mean of `first` minus mean of `second`, paired over the seeds and people of both."""
    resampling = Resampling.of(first, second)
    if not resampling:
        return None
    (a, a_R), (b, b_R) = resampling.means(first), resampling.means(second)
    return resampling.estimate(a - b, a_R - b_R)


@dataclass(frozen=True)
class Curve:
    """Two measures of one arm along a dial, from the prior to full strength."""

    identity: Sequence[Values]
    other: Sequence[Values]


@dataclass(frozen=True)
class EqualIdentity:
    """The other measure of two arms at one identity, and the first's minus the second's, paired."""

    level: float
    first: Estimate
    second: Estimate
    difference: Estimate


def at_equal_identity(first: Curve, second: Curve, level: float | None = None) -> EqualIdentity | None:
    """The other measure of both arms where their identity is `level`, linear between the points of their curves.

    Without a level: the highest that both reach. None where seeds or people have nothing in common.
    """
    resampling = Resampling.of(*first.identity, *first.other, *second.identity, *second.other)
    if not resampling:
        return None
    sides = [
        tuple(_stacked(resampling, columns) for columns in (curve.identity, curve.other)) for curve in (first, second)
    ]
    if level is None:
        level = min(float(identity[0].max()) for identity, _ in sides)
    means: list[float] = []
    draws: list[Float[np.ndarray, " R"]] = []
    for (identity_K, identity_RK), (other_K, other_RK) in sides:
        means.append(interpolated(identity_K, other_K, level))
        draws.append(np.array([interpolated(x, y, level) for x, y in zip(identity_RK, other_RK, strict=True)]))
    ours, theirs = (resampling.estimate(mean, draws_R) for mean, draws_R in zip(means, draws, strict=True))
    return EqualIdentity(level, ours, theirs, resampling.estimate(means[0] - means[1], draws[0] - draws[1]))


def interpolated(x_K: Float[np.ndarray, " K"], y_K: Float[np.ndarray, " K"], level: float) -> float:
    """y where the curve first reaches x = level; the end that is nearest in x where it never does."""
    for place in range(len(x_K) - 1):
        start, stop = float(x_K[place]), float(x_K[place + 1])
        if start <= level <= stop and stop > start:
            share = (level - start) / (stop - start)
            return float(y_K[place] + share * (y_K[place + 1] - y_K[place]))
    return float(y_K[int(np.abs(x_K - level).argmin())])


def _stacked(
    resampling: Resampling, columns: Sequence[Values]
) -> tuple[Float[np.ndarray, " K"], Float[np.ndarray, "R K"]]:
    means = [resampling.means(column) for column in columns]
    return np.array([mean for mean, _ in means]), np.stack([draws_R for _, draws_R in means], axis=1)
