"""What caption, segment and shard have in common: pending shards go to actors, finished ones into the catalog."""

import time
from collections import Counter
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
    left_out: Counter[str] = Counter()
    results = map_shards(worker, items, workers, (run.store, *arguments, run.fingerprints[stage]))
    for result in artifacts.tracked(results, len(items), f"{stage}: shards"):
        run.catalog.commit([result["shard"]], result["photos"])
        photos += result["photos"]
        samples += result["shard"].samples
        left_out.update(result.get("left_out", {}))
    artifacts.refusals(stage, photos)
    note = f"{samples} samples in {len(items)} shards"
    people = "".join(f", {count} people left out as {reason}" for reason, count in sorted(left_out.items()))
    artifacts.markdown(stage, f"{note}, {len(photos)} photos refused{people}, {before} shards were there before.")
    facts = {"left_out": dict(sorted(left_out.items()))} if left_out else {}
    return StageResult(stage, len(items), before, len(photos), time.monotonic() - started, note, facts)
