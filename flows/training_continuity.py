"""That a training which was stopped and resumed lost nothing, or what it left out: in sentences, for every place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flows.training_history import FINISHED, Attempt, read_attempts, steps_done_again
from infra.storage import ObjectStore

_NAMED = 5  # skipped steps in the sentence; all of them are in finished.json


@dataclass(frozen=True)
class Continuity:
    """What to say of a finished training's course."""

    whole: bool
    """Every sample had its turn, and the count agrees with what the steps read."""
    headline: str
    sentences: list[str]
    attempts: list[dict[str, str]]
    """A row for each start of workers."""

    def lines(self) -> list[str]:
        """For the terminal: who did what, where there was more than one start, and what came of it."""
        rows = [", ".join(f"{name} {value}" for name, value in row.items() if value) for row in self.attempts]
        return [*(rows if len(rows) > 1 else ()), f"{self.headline}: {' '.join(self.sentences)}"]


def continuity(store: ObjectStore, run_id: str, finished: Mapping[str, Any]) -> Continuity | None:
    """Of a finished training, from its `finished.json` and its history; None where an older version trained it."""
    if "account" not in finished:
        return None
    account, attempts = finished["account"], read_attempts(store, run_id)
    passed_over, skipped = _passed_over(finished), finished["skipped"]
    whole = account["proven"] and not (account["again"] or account["missing"] or passed_over or skipped)
    sentences = [
        _epochs(account),
        _proof(account["proven"]),
        _done_again(steps_done_again(attempts), sum(len(one.starts) for one in attempts)),
        *_left_out(skipped, passed_over),
    ]
    rows = [row for attempt in attempts for row in _rows(attempt)]
    return Continuity(whole, "Nothing was lost" if whole else "What was left out", sentences, rows)


def course_for_card(store: ObjectStore, run_id: str, finished: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a release's card. Neither people nor machines are named: others pull it."""
    attempts = read_attempts(store, run_id)
    return {
        "account": finished["account"],
        "attempts": len(attempts),
        "steps_done_again": sum(last - first + 1 for first, last in steps_done_again(attempts)),
        "skipped_steps": finished["skipped"],
        "shards_passed_over": _passed_over(finished),
    }


def told_course(course: Mapping[str, Any]) -> dict[str, str]:
    """What stands in a card, for people."""
    again = f", {course['steps_done_again']} steps done again" if course["steps_done_again"] else ""
    skipped, passed_over = course["skipped_steps"], course["shards_passed_over"]
    return {
        "samples": f"{_epochs(course['account'])} {_proof(course['account']['proven'])}",
        "attempts": f"{course['attempts']}{again}",
        "skipped steps": ", ".join(str(one["step"]) for one in skipped) or "none",
        "shards passed over": ", ".join(passed_over) or "none",
    }


def _passed_over(finished: Mapping[str, Any]) -> list[str]:
    """Names of shards that steps in the weights did without."""
    return sorted({name for start in finished["starts"] for name in start["damaged"]})


def _epochs(account: Mapping[str, Any]) -> str:
    samples, whole, begun = account["samples"], account["whole_epochs"], account["begun"]
    epochs = f"{whole:,} whole epoch{'' if whole == 1 else 's'}"
    if account["again"] or account["missing"]:
        return (
            f"Of {samples:,} samples in {epochs} and {begun:,} turns of the next, {account['missing']:,} turns were "
            f"left out and {account['again']:,} were another sample's second."
        )
    if not whole:
        return f"{begun:,} of {samples:,} samples had a turn, each of them exactly one."
    after = f", and {begun:,} of them had theirs in the next one" if begun else ""
    return f"Each of {samples:,} samples had exactly one turn in each of {epochs}{after}."


def _proof(proven: bool) -> str:
    if proven:
        return "That was counted sample by sample, and agrees with what the steps in these weights read."
    return "That is the order, but the steps in these weights read other samples: do not rely on this training."


def _done_again(again: Sequence[tuple[int, int]], starts: int) -> str:
    if starts < 2:
        return "It ran in one go."
    if not again:
        return "No step is known to have been done twice."
    count = sum(last - first + 1 for first, last in again)
    spans = ", ".join(f"{first} to {last}" for first, last in again)
    return f"At least {count:,} steps after a checkpoint were done again, with the same samples: {spans}."


def _left_out(skipped: Sequence[Mapping[str, Any]], passed_over: Sequence[str]) -> list[str]:
    said = [
        f"Step {one['step']} was skipped: {one['fault']}; its samples: {', '.join(one['samples'])}."
        for one in skipped[:_NAMED]
    ]
    if len(skipped) > _NAMED:
        said.append(f"So were {len(skipped) - _NAMED} others.")
    if passed_over:
        said.append(f"Shards passed over as damaged: {', '.join(passed_over)}.")
    return said or ["No step was skipped and no shard passed over."]


def _rows(attempt: Attempt) -> list[dict[str, str]]:
    """A row for each start of its workers; for one that did not get that far, a single row."""
    who = {"attempt": str(attempt.number), "by": attempt.user, "on": attempt.host, "in": attempt.workspace}
    if not attempt.starts:
        nothing = {"after step": "", "workers": "", "reached": ""}
        return [{**who, "began": _when(attempt.time), **nothing, "ended": _ended(attempt)}]
    rows = []
    for number, start in enumerate(attempt.starts):
        last = number + 1 == len(attempt.starts)
        reached = attempt.reached if last else attempt.starts[number + 1].heard
        workers = f"{start.workers} on {', '.join(start.hosts)}"
        row = {"began": _when(start.time), "after step": str(start.step), "workers": workers, "reached": str(reached)}
        rows.append({**who, **row, "ended": _ended(attempt) if last else "a worker or its machine was lost"})
    return rows


def _ended(attempt: Attempt) -> str:
    if attempt.how == FINISHED:
        return f"{FINISHED} {_when(attempt.ended)}"
    if attempt.how:
        return f"{attempt.how} ({_when(attempt.ended)})"
    last = f"; last heard of {_when(attempt.heard_at)}" if attempt.heard_at else ""
    return f"without a word: killed, or its machine was lost{last}"


def _when(time: str) -> str:
    return time.replace("T", " ").replace("+00:00", " UTC")
