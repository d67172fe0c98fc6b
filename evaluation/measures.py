"""A number with its spread and its uncertainty, and the area under a ROC curve."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer
from scipy.stats import rankdata

# A statistic of column means: takes (..., K) and returns (...).
Statistic = Callable[[Float[np.ndarray, "*draws K"]], Float[np.ndarray, "*draws"]]


# JSON has no infinity; a ratio over zero stands there as null.
Number = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]


class Measure(BaseModel):
    """One measured number: `mean` (or a ratio of means), the standard deviation over its samples, and a 95 % interval.

    The interval is a bootstrap over *subjects*, because pictures of one subject are not independent. It is empty
    (`low == high == mean`) when there is only one subject to resample.
    """

    model_config = ConfigDict(frozen=True)

    mean: Number
    std: float = 0.0
    low: Number
    high: Number
    samples: int = 1


def first_column(means_K: Float[np.ndarray, "*draws K"]) -> Float[np.ndarray, "*draws"]:
    """The plain mean of a one-column table."""
    return means_K[..., 0]


def ratio(means_K: Float[np.ndarray, "*draws K"]) -> Float[np.ndarray, "*draws"]:
    """Mean of column 0 divided by mean of column 1; infinite where the divisor is zero and the numerator is not."""
    top, bottom = means_K[..., 0], means_K[..., 1]
    unbounded = np.where(top == 0, 0.0, np.inf)
    return np.where(bottom == 0, unbounded, top / np.where(bottom == 0, 1.0, bottom))


def bootstrap(
    rows_SK: Float[np.ndarray, "S K"], statistic: Statistic = first_column, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `statistic(mean over subjects)`, resampling the S subjects with replacement."""
    if len(rows_SK) == 0:
        raise ValueError("bootstrap needs at least one subject.")
    values_B = statistic(rows_SK[_resampled(len(rows_SK), draws, seed)].mean(axis=1))
    return _interval(values_B)


def bootstrap_pairs(
    rows_P: Float[np.ndarray, " P"], people_P2: Int[np.ndarray, "P 2"], draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of the mean over pairs, resampling the *people*: pairs of one person go together.

    A pair counts as often as the product of how often its two people were drawn (the pigeonhole bootstrap, Owen 2007).
    """
    if len(rows_P) == 0:
        raise ValueError("bootstrap needs at least one pair.")
    people, place = np.unique(people_P2, return_inverse=True)
    chosen_BS = _resampled(len(people), draws, seed)
    drawn_BS = np.stack([np.bincount(chosen, minlength=len(people)) for chosen in chosen_BS])
    first_P, second_P = place.reshape(people_P2.shape).T
    weight_BP = drawn_BS[:, first_P] * drawn_BS[:, second_P]
    weight_BP = weight_BP[weight_BP.sum(axis=1) > 0]  # a draw without any of the pairs says nothing
    return _interval(weight_BP @ rows_P / weight_BP.sum(axis=1))


def _resampled(subjects: int, draws: int, seed: int) -> Int[np.ndarray, "B S"]:
    return np.random.default_rng(seed).integers(0, subjects, size=(draws, subjects))


def _interval(values_B: Float[np.ndarray, " B"]) -> tuple[float, float]:
    # "nearest" takes an observed value: interpolation between two infinite ratios would give nan.
    low, high = np.percentile(values_B, [2.5, 97.5], method="nearest")
    return float(low), float(high)


def measure(by_subject: Mapping[str, Sequence[float]]) -> Measure | None:
    """Mean over subjects of each subject's own mean; `None` where nothing was measured."""
    kept = {name: np.asarray(values, float) for name, values in by_subject.items() if len(values)}
    if not kept:
        return None
    rows_S1 = np.array([[values.mean()] for values in kept.values()])
    every = np.concatenate(list(kept.values()))
    low, high = bootstrap(rows_S1)
    return Measure(mean=float(rows_S1.mean()), std=float(every.std()), low=low, high=high, samples=len(every))


def measure_pairs(by_pair: Mapping[tuple[str, str], Sequence[float]]) -> Measure | None:
    """Mean over pairs of each pair's own mean, with an interval over people; `None` where nothing was measured."""
    kept = {pair: np.asarray(values, float) for pair, values in by_pair.items() if len(values)}
    if not kept:
        return None
    rows_P = np.array([values.mean() for values in kept.values()])
    names = {name: number for number, name in enumerate(dict.fromkeys(name for pair in kept for name in pair))}
    low, high = bootstrap_pairs(rows_P, np.array([[names[name] for name in pair] for pair in kept]))
    every = np.concatenate(list(kept.values()))
    return Measure(mean=float(rows_P.mean()), std=float(every.std()), low=low, high=high, samples=len(every))


def measure_ratio(top: Mapping[str, Sequence[float]], bottom: Mapping[str, Sequence[float]]) -> Measure | None:
    """Ratio of the two means over the subjects that have both; `None` where there is none, or where both are zero."""
    names = [name for name in top if len(top[name]) and len(bottom.get(name, ()))]
    if not names:
        return None
    rows_S2 = np.array([[np.mean(top[name]), np.mean(bottom[name])] for name in names])
    if not rows_S2.any():
        return None
    low, high = bootstrap(rows_S2, ratio)
    return Measure(mean=float(ratio(rows_S2.mean(axis=0))), low=low, high=high, samples=len(names))


def roc_auc(scores_N: Float[np.ndarray, " N"], truth_N: Bool[np.ndarray, " N"]) -> float | None:
    """Probability that a true item scores above a false one (ties count half); `None` when one kind is missing."""
    positives = int(truth_N.sum())
    negatives = truth_N.size - positives
    if positives == 0 or negatives == 0:
        return None
    ranks_N = rankdata(scores_N)
    return float((ranks_N[truth_N].sum() - positives * (positives + 1) / 2) / (positives * negatives))
