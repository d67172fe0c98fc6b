"""Each of the paper's claims against the intervals: it holds, it does not, or this much cannot be said.

A verdict is computed, never written by hand: a claim holds where the whole 95 % interval of a paired difference lies on
its side, does not hold where it lies on the other, and is undecided where the interval crosses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.benchmarks.claims.intervals import Curve, Estimate, at_equal_identity, difference
from tests.benchmarks.claims.plan import (
    CURVE,
    DEFAULT,
    FULL,
    KEPT,
    LENGTHS,
    MASKED,
    MOA,
    PRIOR,
    Arm,
    Protocol,
    Sampling,
    arm,
    curve_samplings,
)
from tests.benchmarks.claims.results import Results

ON_PAR = 0.05  # of identity: what a person of the demo's pictures could hardly see
Answer = Literal["holds", "does not hold", "undecided", "not measured"]


@dataclass(frozen=True)
class Verdict:
    """One claim, the answer, and the numbers that gave it."""

    claim: str
    answer: Answer
    numbers: str


def above(found: Estimate | None, least: float = 0.0) -> Answer:
    """Is the difference above `least`?"""
    if found is None:
        return "not measured"
    if found.low > least:
        return "holds"
    return "does not hold" if found.high < least else "undecided"


def verdicts(results: Results, step: int) -> list[Verdict]:
    """All claims, on the table's pictures: the paper's in its order, and where ours belong between them."""
    judges: tuple[Callable[[Results, int], Verdict], ...] = (
        _keeps_the_scene,
        _keeps_the_scene_at_equal_identity,
        _keeps_the_scene_by_its_routers,
        _keeps_the_scene_better_than_a_mask,
        _identity_on_par,
        _beats_ip_adapter,
        _needs_spacetime,
        _needs_the_router_loss,
        _needs_the_object_loss,
        _router_separates,
        _keeps_variation,
        _keeps_people_apart,
    )
    return [judge(results, step) for judge in judges]


def curve(results: Results, one: Arm, step: int, column: str, how: Sampling = DEFAULT) -> Curve | None:
    """Identity and another column from the prior (strength 0) over the strengths drawn so far to 1.

    None without strength 1 or without any in between: a straight line from the prior would be a guess.
    """
    points = [(PRIOR, 0, DEFAULT), *((one, step, sampling) for sampling in curve_samplings(how))]
    pairs = [
        (results.column("identity", who, at, CURVE, sampling), results.column(column, who, at, CURVE, sampling))
        for who, at, sampling in points
    ]
    if not all(pairs[0]) or not all(pairs[-1]):
        return None
    drawn = [pair for pair in pairs if all(pair)]
    return Curve([identity for identity, _ in drawn], [other for _, other in drawn]) if len(drawn) > 2 else None


def _keeps_the_scene(results: Results, step: int) -> Verdict:
    claim = "Without the MoA layer the prior's scene is lost (change at equal steps, whatever the identity)"
    found, text = _compared(results, "fidelity", arm("no-layer"), step, "grey levels")
    return Verdict(claim, below(found), text)


def _keeps_the_scene_at_equal_identity(results: Results, step: int) -> Verdict:
    claim = "At equal identity MoA changes less of the prior's picture than fine-tuning without the layer"
    return _at_equal_identity(results, step, claim, DEFAULT, DEFAULT)


def _keeps_the_scene_by_its_routers(results: Results, step: int) -> Verdict:
    claim = "The same, with the prior's scene kept where MoA's routers see nobody (ours; the other arm has no routers)"
    return _at_equal_identity(results, step, claim, KEPT, DEFAULT)


def _keeps_the_scene_better_than_a_mask(results: Results, step: int) -> Verdict:
    claim = "The same, and the model without the layer keeps the scene by a segmenter's mask (ours)"
    return _at_equal_identity(results, step, claim, KEPT, MASKED)


def _at_equal_identity(results: Results, step: int, claim: str, ours: Sampling, theirs: Sampling) -> Verdict:
    """MoA against the model without the layer, each drawn in its own way."""
    first = curve(results, MOA, step, "prior_fidelity", ours)
    second = curve(results, arm("no-layer"), step, "prior_fidelity", theirs)
    if first is None or second is None or (found := at_equal_identity(first, second)) is None:
        return Verdict(claim, "not measured", "")
    return Verdict(
        claim,
        below(found.difference),
        f"at identity {found.level:.2f}, the highest that both reach: MoA {found.first.text(1)}, without the layer "
        f"{found.second.text(1)} grey levels; paired difference {found.difference.text(1)} ({CURVE.people} people)",
    )


def _identity_on_par(results: Results, step: int) -> Verdict:
    claim = f"Identity is on par with FastComposer's way (not more than {ON_PAR} below)"
    found, text = _compared(results, "identity", arm("fastcomposer"), step)
    return Verdict(claim, above(found, -ON_PAR), text)


def _beats_ip_adapter(results: Results, step: int) -> Verdict:
    claim = "The scene is kept better than by IP-Adapter (at equal steps, whatever the identity)"
    found, text = _compared(results, "fidelity", arm("ip-adapter"), step, "grey levels")
    return Verdict(claim, below(found), text)


def _needs_spacetime(results: Results, step: int) -> Verdict:
    found, text = _compared(results, "identity", arm("no-spacetime"), step)
    return Verdict("Without spacetime conditioning identity is worse", above(found), text)


def _needs_the_router_loss(results: Results, step: int) -> Verdict:
    found, text = _compared(results, "contrast", arm("no-router-loss"), step)
    return Verdict("The router loss is what parts people and background (router contrast)", above(found), text)


def _needs_the_object_loss(results: Results, step: int) -> Verdict:
    found, text = _compared(results, "identity", arm("no-object-loss"), step)
    return Verdict("The object loss at its weight of 1e-4 raises identity", above(found), text)


def _router_separates(results: Results, step: int) -> Verdict:
    claim = "The router's map finds the person: a higher AUC than a centre blob and than another picture's map"
    auc = results.column("router_auc", MOA, step, FULL)
    answers, numbers = [], []
    for name, title in (("router_auc_centre_blob", "the blob"), ("router_auc_other_picture", "another picture's map")):
        found = difference(auc, results.column(name, MOA, step, FULL))
        answers.append(above(found))
        if found:
            numbers.append(f"{found.text(3)} above {title}")
    mine = results.estimate("router AUC", MOA, step, FULL)
    order: tuple[Answer, ...] = ("not measured", "does not hold", "undecided", "holds")
    text = f"AUC {mine.text(3)}; {', '.join(numbers)}" if mine else ""
    return Verdict(claim, min(answers, key=order.index), text)


def _keeps_variation(results: Results, step: int) -> Verdict:
    claim = "Pictures vary over seeds as the prior's do (at least 0.9 of its variation)"
    ours = results.estimate("variation ratio", MOA, step, FULL)
    theirs = results.estimate("variation ratio", arm("fastcomposer"), step, FULL)
    text = f"{ours.text()} of the prior's" if ours else ""
    return Verdict(claim, above(ours, 0.9), f"{text}; FastComposer's way {theirs.text()}" if theirs else text)


def _keeps_people_apart(results: Results, step: int) -> Verdict:
    claim = "Of two people each looks like their own reference (separation above the prior's)"
    found, text = _compared(results, "mixing", PRIOR, step)
    return Verdict(claim, above(found), text)


def below(found: Estimate | None) -> Answer:
    """Is the difference below zero?"""
    return above(None if found is None else Estimate(-found.mean, -found.high, -found.low, found.seeds))


def _compared(results: Results, measure: str, other: Arm, step: int, unit: str = "") -> tuple[Estimate | None, str]:
    """MoA minus the other arm, and both in words: on the table's pictures, or on what both were measured on."""
    at, protocol = _common(results, other, step)
    found = results.difference(measure, MOA, other, at, protocol)
    ours, theirs = (results.estimate(measure, one, at, protocol) for one in (MOA, other))
    if ours is None or theirs is None or found is None:
        return None, ""
    digits = 1 if unit else 2
    text = f"MoA {ours.text(digits)}, {other.title} {theirs.text(digits)} {unit}".rstrip()
    text += f"; paired difference {found.text(digits if unit else 3)}"
    if (at, protocol) != (step, FULL):
        text += f" (at {at} steps, {protocol.people} people: the other arm is not in the table yet)"
    return found, text


def _common(results: Results, other: Arm, step: int) -> tuple[int, Protocol]:
    """The table if both arms are in it, else the longest training that both have pictures of."""
    options = [(step, FULL), *((length, CURVE) for length in reversed(LENGTHS))]
    for at, protocol in options:
        if results.found(MOA, at, protocol) and results.found(other, at, protocol):
            return at, protocol
    return step, FULL


@dataclass(frozen=True)
class Goal:
    """One part of the goal that was set beforehand."""

    title: str
    wanted: str
    found: str
    reached: bool


def goals(results: Results, one: Arm, at: int, step: int, how: Sampling = DEFAULT) -> list[Goal]:
    """Identity >= 0.6, background change <= 0.15, change against the prior at most half of FastComposer's, objects."""
    checks = (
        ("identity", "identity", lambda e: e.mean >= 0.6, "at least 0.6"),
        ("background change under a swap", "background", lambda e: e.mean <= 0.15, "at most 0.15 of a seed change"),
        ("held objects", "object ratio", lambda e: e.mean >= 0.9, "at least 0.9 of the prior's"),
    )
    found = []
    for title, measure, passes, wanted in checks:
        if (measured := results.estimate(measure, one, at, FULL, how)) is not None:
            found.append(Goal(title, wanted, measured.text(), passes(measured)))
    ours = results.estimate("fidelity", one, at, FULL, how)
    theirs = results.estimate("fidelity", arm("fastcomposer"), step, FULL)
    if ours and theirs:
        title, wanted = "change against the prior's picture", "at most half of FastComposer's way"
        text = f"{ours.text(1)} of {theirs.text(1)} grey levels"
        if kept := results.estimate("fidelity", arm("fastcomposer"), step, FULL, MASKED):
            text += f" ({kept.text(1)} where a segmenter's mask keeps the scene)"
        found.append(Goal(title, wanted, text, ours.mean <= theirs.mean / 2))
    return found
