"""Stage 4: words are bound to people, and all that training reads is computed once."""

from flows import artifacts
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.model_stages import run_stage
from flows.near_duplicates import repeated_photos
from flows.run import COLUMNS, Run, StageResult
from flows.workers import PrecomputeWorker
from infra.settings import Settings
from preprocessing.dataset_index import store_index


@stage_flow("shard")
def shard(settings: Settings) -> StageResult:
    """Build the training shards whose captions and masks are there, and the index of all that there are."""
    run = Run(settings)
    if run.pending("shard") and runs_on_cluster(settings):
        return run_on_cluster(run, "shard", run.fingerprints["shard"], {})
    captions = {row.shard: row for row in run.shards("caption")}
    segments = {row.shard: row for row in run.shards("segment")}
    columns = {name: {row.shard: row for row in run.shards(name)} for name in COLUMNS}
    repeated = repeated_photos(run)
    items = [
        {
            "row": row,
            "caption": captions[row.shard],
            "segment": segments[row.shard],
            "columns": {name: rows[row.shard] for name, rows in columns.items() if row.shard in rows},
            "without": (repeated or {}).get(row.shard, frozenset()),
        }
        for row in run.pending("shard")
        if row.shard in captions and row.shard in segments and (repeated is None or row.shard in repeated)
    ]
    prints = {name: run.fingerprints[name] for name in COLUMNS}
    arguments = (settings.models, settings.shard, settings.binding, settings.filter, prints)
    result = run_stage(run, "shard", PrecomputeWorker, items, settings.shard.workers, arguments)
    if rows := run.training_shards():
        key = store_index(run.store, rows, settings.name)
        artifacts.markdown("dataset", f"The index of these {len(rows)} training shards: {run.store.uri(key)}")
    return result
