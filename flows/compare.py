"""`moa compare A B`: two models that were evaluated under one protocol, measure by measure. No Prefect, no Ray."""

from collections.abc import Iterable
from typing import Any

from flows.contenders import Contender, find_contender
from flows.evaluation_scores import read_scores
from flows.run import Run
from infra.errors import UserError
from infra.settings import Settings


def compare_models(settings: Settings, first: str, second: str) -> dict[str, Any]:
    """The second beside the first, on the same people, prompts and seeds.

    A measure's difference is the second's mean minus the first's, with its interval; "absent": the measures that only
    one of them has, with its name. Raises UserError where they share no protocol, with the commands that mend it.
    """
    from evaluation.comparison import compare
    from evaluation.metrics import BETTER

    run = Run(settings)
    one, other = (find_contender(run, spec) for spec in (first, second))
    protocol = _shared(run, one, other)
    scores = [read_scores(run, each.folder(run, protocol)) for each in (one, other)]
    found = compare(scores[1], scores[0])
    measured = {difference.measure for difference in found.differences}
    has = [{name for name, column in each.values.items() if any(v is not None for v in column)} for each in scores]
    return {
        "first": one.name,
        "second": other.name,
        "protocol": protocol,
        "pictures": found.pictures,
        "measures": [
            {
                "measure": each.measure,
                "first": each.production,
                "second": each.candidate,
                "difference": each.difference.mean,
                "low": each.difference.low,
                "high": each.difference.high,
                "better": each.better,
                "winner": _winner(each, one.name, other.name),
            }
            for each in found.differences
        ],
        "absent": {
            name: one.name if name in has[0] else other.name
            for name in BETTER
            if name not in measured and name in has[0] ^ has[1]
        },
    }


def _winner(difference: Any, first: str, second: str) -> str:
    """Whose measure is better beyond the interval; "" where chance could have made the difference."""
    if difference.is_worse:
        return first
    between = difference.difference
    certain = between.low > 0 if difference.better == "higher" else between.high < 0
    return second if certain else ""


def _shared(run: Run, one: Contender, other: Contender) -> str:
    """The protocol under which both are measured: where there are several, the latest release's."""
    each = [(contender, contender.protocols(run)) for contender in (one, other)]
    if missing := [contender for contender, found in each if not found]:
        raise UserError(f"{_names(missing)} not evaluated yet: run {_commands(missing)}.")
    shared = each[0][1] & each[1][1]
    if not shared:
        raise UserError(
            f"{one.name} and {other.name} were evaluated under different protocols: run {_commands([one, other])} "
            "with the same settings."
        )
    evaluated = (run.releases.card(release).get("evaluation") for release in reversed(run.releases.all()))
    return next((protocol for protocol in evaluated if protocol in shared), max(shared))


def _names(contenders: Iterable[Contender]) -> str:
    names = list(dict.fromkeys(one.name for one in contenders))
    return f"{' and '.join(names)} {'was' if len(names) == 1 else 'were'}"


def _commands(contenders: Iterable[Contender]) -> str:
    return " and ".join(dict.fromkeys(f"moa evaluate --model {one.spec}" for one in contenders))
