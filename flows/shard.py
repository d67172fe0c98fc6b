"""Stage 4: words are bound to people, and all that training reads is computed once."""

from prefect import flow

from flows.model_stages import run_stage
from flows.run import Run, StageResult
from flows.workers import PrecomputeWorker
from infra.settings import Settings


@flow(name="shard")
def shard(settings: Settings) -> StageResult:
    """Build the training shards whose captions and masks are there."""
    run = Run(settings)
    captions = {row.shard: row for row in run.shards("caption")}
    segments = {row.shard: row for row in run.shards("segment")}
    items = [
        {"row": row, "caption": captions[row.shard], "segment": segments[row.shard]}
        for row in run.pending("shard")
        if row.shard in captions and row.shard in segments
    ]
    arguments = (settings.models, settings.shard, settings.binding, settings.filter)
    return run_stage(run, "shard", PrecomputeWorker, items, settings.shard.workers, arguments)
