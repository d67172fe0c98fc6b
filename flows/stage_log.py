"""How the last runs of each stage ended, in the store: a run is a short process, and who watches comes later.

    stage-runs/ingest/00000012.json    run 12: when it ended, how, how long it took, and how many ended so up to it

Created, never replaced; the last few stay. Nothing here names a photo or repeats an error: that is in Prefect.
"""

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from infra.errors import UserError
from infra.settings import Settings
from infra.storage import ObjectStore, open_store

FOLDER = "stage-runs"
_KEPT = 20  # of each stage: listing them must stay one request, however many years it runs


class Outcome(StrEnum):
    """How a run of a stage ended."""

    FINISHED = "finished"
    REFUSED = "refused"  # a user's mistake, told in a sentence
    FAILED = "failed"
    STOPPED = "stopped"  # cancelled, or Ctrl-C


@dataclass(frozen=True)
class StageRun:
    """One run of a stage."""

    stage: str
    number: int
    outcome: str
    ended: float
    """Seconds since 1970, by the clock of the machine that ran it."""
    seconds: float
    finished: float
    """When a run of the stage last ended well, this one or one before; 0 = never."""
    totals: dict[str, int] = field(default_factory=dict)
    """Outcome -> how many runs ended so, this one among them."""


def last_run(store: ObjectStore, stage: str) -> StageRun | None:
    """The stage's last run; None where none is known."""
    for key in reversed(store.list(f"{FOLDER}/{stage}/")):
        try:
            return StageRun(**json.loads(store.get(key)))
        except (KeyError, ValueError, TypeError):
            continue  # swept away meanwhile, or a newer moa's
    return None


def last_runs(store: ObjectStore) -> list[StageRun]:
    """The last run of every stage that ever ran, by the stage's name."""
    stages = {key.split("/")[1] for key in store.list(f"{FOLDER}/")}
    return [run for stage in sorted(stages) if (run := last_run(store, stage)) is not None]


def note_run(store: ObjectStore, stage: str, outcome: Outcome, seconds: float) -> StageRun:
    """Write down that a run of the stage has ended now, `seconds` after it began."""
    while True:
        before, ended = last_run(store, stage), time.time()
        totals = dict(before.totals) if before else {}
        totals[outcome.value] = totals.get(outcome.value, 0) + 1
        number = before.number + 1 if before else 1
        well = ended if outcome is Outcome.FINISHED else before.finished if before else 0.0
        run = StageRun(stage, number, outcome.value, ended, round(seconds, 3), well, totals)
        if store.create(_key(stage, number), json.dumps(asdict(run)).encode()):
            for key in store.list(f"{FOLDER}/{stage}/")[:-_KEPT]:
                store.delete(key)
            return run  # else somebody else's run ended at this moment


@contextmanager
def noted(stage: str, settings: Any) -> Iterator[list[Outcome]]:
    """Write down how the block ends. An outcome that is appended to the list stands in the place of the usual one.

    What cannot be written, because the store is away, is said and changes nothing else.
    """
    started, said = time.monotonic(), list[Outcome]()
    outcome = Outcome.FAILED
    try:
        yield said
        outcome = Outcome.FINISHED
    except UserError:
        outcome = Outcome.REFUSED
        raise
    except (KeyboardInterrupt, SystemExit):
        outcome = Outcome.STOPPED
        raise
    finally:
        if isinstance(settings, Settings):
            _note(settings, stage, said[-1] if said else outcome, time.monotonic() - started)


def _note(settings: Settings, stage: str, outcome: Outcome, seconds: float) -> None:
    try:
        note_run(open_store(settings.store_root, settings.storage.endpoint_url, attempts=1), stage, outcome, seconds)
    except Exception as error:
        warnings.warn(f"How {stage} ended could not be written down ({type(error).__name__}: {error}).", stacklevel=2)


def _key(stage: str, number: int) -> str:
    return f"{FOLDER}/{stage}/{number:08d}.json"
