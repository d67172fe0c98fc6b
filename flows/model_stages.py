"""What caption, segment and shard have in common: pending shards go to actors, finished ones into the catalog."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from flows import artifacts
from flows.run import Run, StageResult
from infra.ray_session import ShardWorker, map_shards
from preprocessing.commits import CommitBuffer
from preprocessing.recipes import Speed


def run_stage(
    run: Run,
    stage: str,
    worker: type[ShardWorker],
    items: Sequence[dict[str, Any]],
    workers: int,
    arguments: Sequence[Any],
) -> StageResult:
    """Do the items and commit each soon after it is done: what is committed stays done, whatever happens next."""
    started = time.monotonic()
    before = run.done(stage)
    if not items:
        return StageResult(stage, 0, before, note="nothing pending")
    gpus = run.settings.ray.gpus_per_worker
    refusals = artifacts.Refusals(stage)
    samples = 0
    results = map_shards(worker, items, workers, (run.store, *arguments, run.fingerprints[stage]), len(items), gpus)
    left_out: Counter[str] = Counter()
    with closing(results), written_down(run, stage, workers) as clock, CommitBuffer(run.catalog) as buffer:
        for result in artifacts.tracked(results, len(items), f"{stage}: shards"):
            shards = [result["shard"], *result.get("more", ())]
            made = sum(shard.samples for shard in shards if shard.stage == stage)
            buffer.add(shards, result["photos"])
            refusals.add(result["photos"])
            left_out.update(result.get("left_out", {}))
            samples += made
            clock.tick(made + len(result["photos"]))
    refusals.show()
    note = f"{samples} samples in {len(items)} shards"
    people = "".join(f", {count} people left out as {reason}" for reason, count in sorted(left_out.items()))
    artifacts.markdown(stage, f"{note}, {refusals.count} photos refused{people}, {before} shards were there before.")
    facts = {"left_out": dict(sorted(left_out.items()))} if left_out else {}
    return StageResult(stage, len(items), before, refusals.count, time.monotonic() - started, note, facts)


class Clock:
    """Counts shards and photos while they are finished."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first, self.shards, self.photos = 0.0, 0, 0

    def tick(self, photos: int) -> None:
        """One more shard is finished."""
        self.first = self.first or time.monotonic() - self.started
        self.shards, self.photos = self.shards + 1, self.photos + photos


@contextmanager
def written_down(run: Run, stage: str, workers: int) -> Iterator[Clock]:
    """For `moa plan`: how the stage's shards are made, and afterwards how fast they were."""
    for recipe in run.recipes.values():  # the columns and the stages before it, too
        recipe.save(run.store)
    clock = Clock()
    try:
        yield clock
    finally:
        if clock.shards:
            seconds = round(time.monotonic() - clock.started, 3)
            Speed(clock.shards, clock.photos, seconds, round(clock.first, 3), workers).save(run.store, stage)
