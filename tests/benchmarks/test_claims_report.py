"""From results to verdicts and the page: what holds is what the intervals say, and what is missing is said to be."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.intervals import Estimate
from tests.benchmarks.claims.plan import (
    CURVE,
    DEFAULT,
    FULL,
    KEPT,
    MASKED,
    MOA,
    PRIOR,
    RELEASE,
    SAMPLINGS,
    SEARCH,
    STRENGTHS,
    TABLE,
    TABLE_SCENES,
    Arm,
    Drawn,
    Protocol,
    Sampling,
    arm,
    curve_samplings,
    todo,
)
from tests.benchmarks.claims.report import longest, write_report
from tests.benchmarks.claims.results import Results
from tests.benchmarks.claims.verdicts import above, below, goals, verdicts

_PEOPLE = [f"p{number}" for number in range(12)]


def _write(gallery: Gallery, one: Arm, step: int, protocol: Protocol, seed: int = 0, how: Sampling = DEFAULT, **means):
    """A made-up result: every person near the mean of each column."""
    noise = np.random.default_rng([seed, step]).normal(scale=0.02, size=len(_PEOPLE))
    columns = {
        name: {person: mean * (1 + float(n)) for person, n in zip(_PEOPLE, noise, strict=True)}
        for name, mean in means.items()
    }
    pairs = {"separation": columns.pop("separation")} if "separation" in columns else {}
    item = Drawn(one, seed, step, how, protocol)
    path = gallery.path(item)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"columns": columns, "pairs": pairs, "sampling": asdict(how)}))


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(None, tmp_path)  # type: ignore[arg-type]  # nothing is drawn here


def _filled(gallery: Gallery, step: int = 600) -> Results:
    common = {"prompt_consistency": 0.6, "prior_variation": 0.2, "prior_object_accuracy": 0.9, "seed_difference": 20.0}
    kept = kept_columns = {**common, "swap_difference": 2.0, "object_accuracy": 0.88, "variation": 0.2}
    lost = {**common, "swap_difference": 9.0, "object_accuracy": 0.3, "variation": 0.1}
    router = {"router_auc": 0.95, "router_auc_centre_blob": 0.7, "router_auc_other_picture": 0.8, "router_iou": 0.6}
    for protocol in (FULL, CURVE):
        _write(gallery, PRIOR, 0, protocol, identity=0.2, prior_fidelity=0.0, separation=0.1, **kept)
        _write(gallery, MOA, step, protocol, identity=0.62, prior_fidelity=4.0, separation=0.4, router_contrast=0.3,
               **kept, **router)  # fmt: skip
        for name in ("fastcomposer", "no-layer", "ip-adapter"):
            _write(gallery, arm(name), step, protocol, identity=0.6, prior_fidelity=15.0, separation=0.2, **lost)
    for how in STRENGTHS:
        share = {"identity": 0.2 + 0.4 * how.strength}
        _write(gallery, MOA, step, CURVE, 0, how, prior_fidelity=4.0 * how.strength, **share, **kept)
        _write(gallery, arm("no-layer"), step, CURVE, 0, how, prior_fidelity=15.0 * how.strength, **share, **lost)
    for one, kept, change in ((MOA, KEPT, 2.0), (arm("no-layer"), MASKED, 1.0)):
        for how in curve_samplings(kept):
            share = {"identity": 0.2 + 0.4 * how.strength, "prior_fidelity": change * how.strength}
            _write(gallery, one, step, CURVE, 0, how, **share, **kept_columns)
    return Results(gallery, (0, 1))


@pytest.mark.parametrize(
    "low, high, answer", [(0.1, 0.3, "holds"), (-0.3, -0.1, "does not hold"), (-0.1, 0.1, "undecided")]
)
def test_an_answer_is_where_the_whole_interval_lies(low, high, answer):
    assert above(Estimate((low + high) / 2, low, high, 1)) == answer
    assert below(Estimate(-(low + high) / 2, -high, -low, 1)) == answer
    assert above(None) == "not measured"


def test_verdicts_follow_the_numbers_and_the_missing_arms_are_not_judged(gallery: Gallery):
    answers = {verdict.claim.split(" (")[0]: verdict.answer for verdict in verdicts(_filled(gallery), 600)}
    assert answers["Without the MoA layer the prior's scene is lost"] == "holds"
    equal = "At equal identity MoA changes less of the prior's picture than fine-tuning without the layer"
    assert answers[equal] == "holds"
    assert answers["The same, with the prior's scene kept where MoA's routers see nobody"] == "holds"
    assert answers["The same, and the model without the layer keeps the scene by a segmenter's mask"] == "does not hold"
    assert answers["Identity is on par with FastComposer's way"] == "holds"
    assert answers[
        "The router's map finds the person: a higher AUC than a centre blob and than another picture's map"
    ] == ("holds")
    assert answers["Of two people each looks like their own reference"] == "holds"
    assert answers["Without spacetime conditioning identity is worse"] == "not measured"


def test_an_arm_that_is_only_on_the_curves_is_judged_there_and_it_is_said(gallery: Gallery):
    results = _filled(gallery)
    _write(gallery, arm("no-spacetime"), 600, CURVE, identity=0.5)
    verdict = next(one for one in verdicts(results, 600) if "spacetime" in one.claim)
    assert verdict.answer == "holds" and "not in the table yet" in verdict.numbers


def test_the_goal_is_checked_part_by_part(gallery: Gallery):
    reached = {goal.title: goal.reached for goal in goals(_filled(gallery), MOA, 600, 600)}
    assert reached == {
        "identity": True,
        "background change under a swap": True,
        "held objects": True,
        "change against the prior's picture": True,
    }


def test_the_report_is_written_from_nothing_and_from_something(gallery: Gallery, tmp_path: Path):
    written = write_report(gallery, (0, 1), tmp_path / "empty")
    text = written[0].read_text()
    assert "Not measured yet" in text and "**not measured**" in text
    results = _filled(gallery)
    assert longest(results) == 600
    _write(gallery, SEARCH[0], 600, CURVE, identity=0.5, prior_fidelity=2.0)
    for how in (DEFAULT, SAMPLINGS[0]):
        _write(gallery, RELEASE, 0, CURVE, 0, how, identity=0.7, prior_fidelity=9.0)
    gallery.pictures = lambda item: None  # type: ignore[method-assign]  # none were kept
    written = write_report(gallery, (0, 1), tmp_path / "full")
    text = written[0].read_text()
    assert "Trained for 600 steps" in text and "training seeds 0 |" in text
    assert SEARCH[0].title in text and "preservation 4" in text.rpartition("Not measured yet: ")[2]
    assert SAMPLINGS[0].label() in text
    names = {path.name for path in written}
    assert {
        "CLAIMS.md",
        "length-prior.png",
        "strength-prior.png",
        "scene-prior.png",
        "search-training-prior.png",
    } <= names
    assert "| scene kept | MoA without the MoA layer; scene kept by a mask | 0.60 |" in text
    for name in names - {"CLAIMS.md"}:
        assert f"pictures/claims/{name}" in text


def test_the_plan_draws_every_arm_once_and_the_first_seed_first():
    items = todo((0, 1), 600)
    assert len({item.key() + item.name for item in items}) == len(items)
    full = [item for item in items if item.protocol == FULL and item.arm.kind != "prior"]
    arms = len(TABLE) - 1 + len(TABLE_SCENES)  # the prior is drawn once
    assert [item.seed for item in full] == [0] * (arms + 2) + [1] * arms  # release 1, free and kept, is one training
    assert {item.arm.name for item in items} == {one.name for one in (*TABLE, RELEASE, *SEARCH)}
    assert max(item.step for item in items) == 600
    assert not {item.arm.name for item in todo((0,), 600, search=False)} & {one.name for one in SEARCH}
