"""What caption, segment and shard have in common: pending shards go to actors, finished ones into the catalog."""

import time
from collections.abc import Sequence
from typing import Any

from flows import artifacts
from flows.run import Run, StageResult
from infra.ray_session import ShardWorker, map_shards


def run_stage(
    run: Run,
    stage: str,
    worker: type[ShardWorker],
    items: Sequence[dict[str, Any]],
    workers: int,
    arguments: Sequence[Any],
) -> StageResult:
    """Do the items and commit each as it is done: what is committed stays done, whatever happens next."""
    started = time.monotonic()
    before = len(run.shards(stage))
    if not items:
        return StageResult(stage, 0, before, note="nothing pending")
    photos: list[Any] = []
    samples = 0
    results = map_shards(worker, items, workers, (run.store, *arguments, run.fingerprints[stage]))
    for result in artifacts.tracked(results, len(items), f"{stage}: shards"):
        shards = [result["shard"], *result.get("more", ())]
        run.catalog.commit(shards, result["photos"])
        photos += result["photos"]
        samples += sum(shard.samples for shard in shards if shard.stage == stage)
    artifacts.refusals(stage, photos)
    note = f"{samples} samples in {len(items)} shards"
    artifacts.markdown(stage, f"{note}, {len(photos)} photos refused, {before} shards were there before.")
    return StageResult(stage, len(items), before, len(photos), time.monotonic() - started, note)
