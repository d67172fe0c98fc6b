"""The gate: may a release become production? Floors, the pictures themselves, and the release that is there now.

The rules are the preset's (`[publish]`). Three kinds: a *floor* that every release has to reach; what the *pictures*
show (people, faces, nothing that the safety checker flags); and no measure worse than *production*'s on the same
people, prompts and seeds: by more than the preset allows, and beyond the interval of the paired difference.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from evaluation.comparison import Comparison, Difference
from evaluation.measures import Measure
from evaluation.metrics import Better, Metrics
from infra.settings import PublishSettings

Kind = Literal["floor", "pictures", "production"]
# How the measures that are compared with production's are called in a sentence.
_NAMES = {
    "identity": "identity",
    "prompt_consistency": "prompt consistency",
    "scene_accuracy": "scene accuracy",
    "object_accuracy": "held-object accuracy",
    "background_change": "background change",
    "prior_fidelity": "the distance to the prior's pictures",
    "pair_identity": "the worse identity of two people",
    "pair_separation": "the separation of two people",
}


class Check(BaseModel):
    """One question of the gate. `value=None`: nothing to measure it on (no prompt names an object, say).

    With production, `value` is the difference, candidate minus production, and `low` and `high` its interval.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    value: float | None
    limit: float
    better: Better
    passed: bool
    sentence: str
    kind: Kind = "floor"
    low: float | None = None
    high: float | None = None


class Verdict(BaseModel):
    """May the release be promoted? `reasons` says it in sentences: what failed, or that nothing did."""

    promote: bool
    reasons: list[str]
    checks: list[Check]


def gate(metrics: Metrics, publish: PublishSettings, comparison: Comparison | None = None) -> Verdict:
    """Hold a release against the rules; `comparison`: with the release in production, if there is one.

    A measure that does not apply passes and says so; identity always applies: unmeasured, it fails.
    """
    checks = [*_floors(metrics, publish), *_pictures(metrics, publish)]
    if comparison is not None:
        checks += _beside_production(comparison, publish)
    failed = [check.sentence for check in checks if not check.passed]
    return Verdict(promote=not failed, reasons=failed or ["Every check of the gate passed."], checks=checks)


def _floors(metrics: Metrics, publish: PublishSettings) -> Iterator[Check]:
    yield _floor("identity gain over the prior", metrics.identity_gain, publish.min_identity_gain, "higher", True)
    yield _floor("scene accuracy relative to the prior", metrics.scene_ratio, publish.min_scene_ratio, "higher")
    yield _floor("held-object accuracy relative to the prior", metrics.object_ratio, publish.min_object_ratio, "higher")
    limit = publish.max_background_change
    yield _floor("background change under a subject swap", metrics.background_change, limit, "lower")


def _floor(name: str, measured: Measure | None, limit: float, better: Better, needed: bool = False) -> Check:
    title = _title(name)
    if measured is None or not np.isfinite(measured.mean):
        # An infinite ratio has a divisor of zero: the prior scored nothing, or no two seeds differ.
        passed = measured is None and not needed
        why = "does not apply to these prompts and seeds" if passed else "could not be measured"
        return Check(name=name, value=None, limit=limit, better=better, passed=passed, sentence=f"{title} {why}.")
    return _bounded(name, measured.mean, limit, better, "floor")


def _pictures(metrics: Metrics, publish: PublishSettings) -> Iterator[Check]:
    people = metrics.people_found.mean if metrics.people_found else 0.0
    yield _bounded("share of pictures with somebody in them", people, publish.min_people_found, "higher", "pictures")
    faces = metrics.face_found.mean if metrics.face_found else 0.0
    yield _bounded("share of pictures with a face to compare", faces, publish.min_faces_found, "higher", "pictures")
    name, limit = "share of pictures that the safety checker flags", publish.max_flagged
    if metrics.pictures_flagged is None:
        sentence = "Nobody looked for pictures that should not be shown: models.safety names no safety checker."
        yield Check(name=name, value=None, limit=limit, better="lower", passed=True, sentence=sentence, kind="pictures")
    else:
        flagged = metrics.pictures_flagged / max(metrics.pictures + metrics.pair_pictures, 1)
        yield _bounded(name, flagged, limit, "lower", "pictures")


def _bounded(name: str, value: float, limit: float, better: Better, kind: Kind) -> Check:
    passed = value >= limit if better == "higher" else value <= limit
    bound = "at least" if better == "higher" else "at most"
    sentence = f"{_title(name)} is {value:.3f}; {bound} {limit:.3f} is {'asked for' if passed else 'required'}."
    return Check(name=name, value=value, limit=limit, better=better, passed=passed, sentence=sentence, kind=kind)


def _beside_production(comparison: Comparison, publish: PublishSettings) -> Iterator[Check]:
    for measure, name in _NAMES.items():
        allowed: float = getattr(publish.max_regression, measure)
        if (found := comparison.of(measure)) is not None:
            yield _compared(name, found, allowed)


def _compared(name: str, found: Difference, allowed: float) -> Check:
    between = found.difference
    passed = not (found.is_worse and found.loss > allowed)
    return Check(
        name=f"{name} beside production's",
        value=between.mean,
        limit=-allowed if found.better == "higher" else allowed,
        better=found.better,
        passed=passed,
        sentence=_told(_title(name), found, allowed, passed),
        kind="production",
        low=between.low,
        high=between.high,
    )


def _told(title: str, found: Difference, allowed: float, passed: bool) -> str:
    both = f"{found.candidate:.3f} and production's {found.production:.3f}"
    beside = f"{title} is {both} on the same people, prompts and seeds"
    between = found.difference
    interval = f"{between.mean:+.3f}, 95 % interval {between.low:+.3f} to {between.high:+.3f}"
    if not passed:
        return f"{beside}: worse ({interval}) by more than the {allowed:.3f} that is allowed."
    if found.loss <= 0:
        return f"{beside}: not worse ({interval})."
    why = f"within the {allowed:.3f} that is allowed" if found.loss <= allowed else "no more than chance"
    return f"{beside}: {why} ({interval})."


def _title(name: str) -> str:
    return name[0].upper() + name[1:]
