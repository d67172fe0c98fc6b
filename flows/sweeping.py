"""`moa sweep`: what killed runs left, what no release needs, and checkpoints with which nobody went on."""

import re
import time
from dataclasses import dataclass, field
from datetime import datetime

from flows.checkpoints import folder_of
from flows.holdings import EVALUATED
from flows.job_records import at_work
from flows.quantities import in_bytes
from flows.retention import TooOld, find_too_old, let_go
from flows.run import COLUMNS, STAGES, Run
from flows.session import alone_in
from flows.training_history import read_attempts
from infra import upkeep
from infra.settings import Settings
from preprocessing.catalog import litter

_RUN = re.compile(r"runs/([^/]+)/checkpoints/")


@dataclass(frozen=True)
class Litter:
    """Keys of the store with their bytes, by why nobody needs them."""

    shards: dict[str, int]
    checkpoints: dict[str, int]
    garbage: upkeep.Garbage
    at_work: list[str] = field(default_factory=list)
    """Jobs on a cluster: while there are any, shards and checkpoints are left alone."""

    @property
    def says(self) -> str:
        """For people."""
        if self.at_work:
            return f"Shards and checkpoints are left alone while {', '.join(self.at_work)} is at work."
        sizes = [*self.shards.values(), *self.checkpoints.values(), *self.garbage.objects.values()]
        return (
            f"{len(self.shards)} shards of killed runs, {len(self.checkpoints)} objects of abandoned checkpoints, "
            f"{len(self.garbage.objects)} files that no release needs, {len(self.garbage.unfinished)} unfinished "
            f"uploads: {in_bytes(sum(sizes))}."
        )


def sweep(settings: Settings, dry_run: bool = False) -> tuple[TooOld, Litter]:
    """Photos over their time and litter: look, and unless `dry_run` delete. Nobody else may be at work in the workspace
    meanwhile: UserError."""
    with alone_in(settings.workspace):
        old = find_too_old(settings)
        if not dry_run:
            old = let_go(settings, old)  # what it replaces is no litter
        found = find_litter(settings)
        if not dry_run:
            take_away(settings, found)
    return old, found


def find_litter(settings: Settings) -> Litter:
    """Look, and change nothing. Nobody else may be writing into the store."""
    run = Run(settings)
    jobs = [attempt.job_id for attempt in at_work(run.store)]
    shards, checkpoints = dict[str, int](), dict[str, int]()
    if not jobs:
        sizes = run.store.sizes("shards/")
        shards = {key: sizes[key] for key in litter(run.store, run.catalog, (*STAGES, *COLUMNS))}
        checkpoints = _abandoned(run, settings.service.checkpoint_days * 86_400)
    return Litter(shards, checkpoints, upkeep.find_garbage(run.store), jobs)


def take_away(settings: Settings, found: Litter) -> None:
    """Delete it."""
    run = Run(settings)
    for key in (*found.shards, *sorted(found.checkpoints, key=lambda key: not key.endswith("complete.json"))):
        run.store.delete(key)  # a checkpoint's list first: no half is ever complete
    if not found.at_work:
        for folder in EVALUATED:
            run.store.sweep(folder)
    upkeep.collect_garbage(run.store, found.garbage)


def _abandoned(run: Run, seconds: float) -> dict[str, int]:
    """Checkpoints of trainings that did not finish, and of which nothing was heard for so long."""
    sizes = run.store.sizes("runs/")
    found: dict[str, int] = {}
    for run_id in sorted({match[1] for key in sizes if (match := _RUN.match(key))}):
        attempts = read_attempts(run.store, run_id)
        heard = [at for one in attempts for at in (one.time, one.heard_at, one.ended) if at]
        if not heard or time.time() - max(datetime.fromisoformat(at).timestamp() for at in heard) < seconds:
            continue  # without a history nobody knows how old it is
        found |= {key: size for key, size in sizes.items() if key.startswith(folder_of(run_id))}
    return found
