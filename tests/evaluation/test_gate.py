"""Floors, pictures, and the release in production."""

import math

import numpy as np
import pytest

from evaluation.comparison import Comparison, Difference
from evaluation.gate import Verdict, gate
from evaluation.measures import Measure
from evaluation.metrics import Metrics
from infra.settings import RegressionSettings, load_settings

LIMITS = load_settings("demo").publish.model_copy(
    update={
        "min_identity_gain": 0.35,
        "min_scene_ratio": 0.95,
        "min_object_ratio": 0.7,
        "max_background_change": 0.3,
        "min_people_found": 0.9,
        "min_faces_found": 0.8,
        "max_flagged": 0.1,
        "max_regression": RegressionSettings(
            identity=0.03,
            prompt_consistency=0.01,
            scene_accuracy=0.03,
            object_accuracy=0.1,
            background_change=0.05,
            prior_fidelity=1.5,
            pair_identity=0.05,
            pair_separation=0.05,
        ),
    }
)


def number(value: float) -> Measure:
    return Measure(mean=value, low=value, high=value)


def metrics(flagged: int | None = None, **changed: float | None) -> Metrics:
    values: dict[str, float | None] = {
        "identity": 0.5,
        "identity_gain": 0.45,
        "scene_ratio": 0.99,
        "object_ratio": 0.8,
        "background_change": 0.2,
        "people_found": 1.0,
        "face_found": 0.95,
    } | changed
    measured = {name: None if value is None else number(value) for name, value in values.items()}
    return Metrics(pictures=8, subjects=4, pair_pictures=2, pictures_flagged=flagged, **measured)  # type: ignore[arg-type]


def beside(measure: str, mean: float, low: float, high: float, better: str = "higher") -> Comparison:
    """A candidate that differs from production's 0.5 in one measure."""
    between = Measure(mean=mean, low=low, high=high, samples=8)
    found = Difference(
        measure=measure,
        better=better,  # type: ignore[arg-type]
        candidate=0.5 + mean,
        production=0.5,
        difference=between,
    )
    return Comparison(pictures=8, differences=[found])


def test_a_good_release_is_promoted_and_every_check_says_why() -> None:
    verdict = gate(metrics(), LIMITS, beside("identity", 0.02, 0.01, 0.03))
    assert verdict.promote
    assert verdict.reasons == ["Every check of the gate passed."]
    kinds = [check.kind for check in verdict.checks]
    assert kinds == ["floor"] * 4 + ["pictures"] * 3 + ["production"]
    assert [check.limit for check in verdict.checks] == [0.35, 0.95, 0.7, 0.3, 0.9, 0.8, 0.1, -0.03]
    told = "Identity is 0.520 and production's 0.500 on the same people, prompts and seeds: not worse "
    assert verdict.checks[-1].sentence == told + "(+0.020, 95 % interval +0.010 to +0.030)."


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("identity_gain", 0.34, "Identity gain over the prior is 0.340; at least 0.350 is required."),
        ("scene_ratio", 0.9, "Scene accuracy relative to the prior is 0.900"),
        ("object_ratio", 0.69, "Held-object accuracy relative to the prior is 0.690"),
        ("background_change", 0.31, "at most 0.300 is required"),
        ("people_found", 0.89, "Share of pictures with somebody in them is 0.890; at least 0.900 is required."),
        ("face_found", 0.79, "Share of pictures with a face to compare is 0.790"),
        ("face_found", None, "Share of pictures with a face to compare is 0.000"),
    ],
)
def test_each_limit_stops_a_release(name: str, value: float | None, sentence: str) -> None:
    verdict = gate(metrics(**{name: value}), LIMITS)
    assert not verdict.promote
    assert len(verdict.reasons) == 1
    assert sentence in verdict.reasons[0]


@pytest.mark.parametrize(
    ("measure", "mean", "low", "high", "better", "passes"),
    [
        ("identity", -0.05, -0.07, -0.04, "higher", False),  # worse, beyond chance and by more than 0.03
        ("identity", -0.05, -0.11, 0.01, "higher", True),  # that much, but it may be chance
        ("identity", -0.02, -0.03, -0.01, "higher", True),  # certain, but allowed
        ("identity", 0.05, 0.04, 0.06, "higher", True),
        ("prior_fidelity", 2.0, 1.0, 3.0, "lower", False),
        ("prior_fidelity", -2.0, -3.0, -1.0, "lower", True),
        ("pair_separation", -0.2, -0.3, -0.1, "higher", False),
        ("variation", -0.2, -0.3, -0.1, "higher", True),  # no rule about it
    ],
)
def test_worse_than_production_is_more_than_allowed_and_more_than_chance(
    measure: str, mean: float, low: float, high: float, better: str, passes: bool
) -> None:
    verdict = gate(metrics(), LIMITS, beside(measure, mean, low, high, better))
    assert verdict.promote == passes
    if not passes:
        (reason,) = verdict.reasons
        assert f"{0.5 + mean:.3f} and production's 0.500 on the same people, prompts and seeds: worse (" in reason
        assert f"{low:+.3f} to {high:+.3f}" in reason


def test_exactly_at_the_limit_passes() -> None:
    at_limit = metrics(identity_gain=0.35, scene_ratio=0.95, object_ratio=0.7, background_change=0.3, face_found=0.8)
    assert gate(at_limit, LIMITS).promote


def test_the_first_release_has_no_production_to_beat() -> None:
    verdict = gate(metrics(), LIMITS)
    assert verdict.promote
    assert not any(check.kind == "production" for check in verdict.checks)


def test_what_does_not_apply_passes_and_what_could_not_be_measured_fails() -> None:
    without_objects = gate(metrics(object_ratio=None), LIMITS)
    assert without_objects.promote
    assert "does not apply" in without_objects.checks[2].sentence
    assert not gate(metrics(identity_gain=None), LIMITS).promote
    assert not gate(metrics(background_change=math.inf), LIMITS).promote
    assert not gate(metrics(scene_ratio=math.nan), LIMITS).promote


def test_flagged_pictures_are_a_share_of_all_and_no_checker_is_said() -> None:
    assert gate(metrics(flagged=1), LIMITS).promote
    (reason,) = gate(metrics(flagged=2), LIMITS).reasons
    assert reason == "Share of pictures that the safety checker flags is 0.200; at most 0.100 is required."
    (unasked,) = [check for check in gate(metrics(), LIMITS).checks if "flags" in check.name]
    assert unasked.passed and unasked.value is None and "models.safety names no safety checker" in unasked.sentence


def test_a_verdict_and_its_metrics_survive_json() -> None:
    before = metrics(scene_ratio=None)
    assert Metrics.model_validate_json(before.model_dump_json()) == before
    verdict = gate(before, LIMITS, beside("identity", -0.1, -0.2, -0.05))
    assert type(verdict).model_validate_json(verdict.model_dump_json()) == verdict
    old = {"name": "a", "value": 0.5, "limit": 0.4, "better": "higher", "passed": True, "sentence": "A."}
    assert Verdict.model_validate({"promote": True, "reasons": [], "checks": [old]}).checks[0].kind == "floor"


@pytest.mark.parametrize("preset", ["demo", "sd15"])
def test_every_rule_of_a_preset_is_asked(preset: str) -> None:
    publish = load_settings(preset).publish
    names = list(RegressionSettings.model_fields)
    low = {"background_change", "prior_fidelity"}
    differences = [
        beside(name, *(np.array([1, 1, 1]) * (90 if name in low else -90)), "lower" if name in low else "higher")
        for name in names
    ]
    everything = Comparison(pictures=1, differences=[one.differences[0] for one in differences])
    assert len([check for check in gate(metrics(), publish, everything).checks if not check.passed]) == len(names)
