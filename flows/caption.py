"""Stage 2: every photo gets a sentence."""

from flows import artifacts
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.model_stages import run_stage
from flows.run import Run, StageResult
from flows.workers import CaptionWorker
from infra.settings import Settings
from preprocessing.catalog import load_shard
from preprocessing.shards import read_tar


@stage_flow("caption")
def caption(settings: Settings) -> StageResult:
    """Caption the shards that have no captions yet."""
    run = Run(settings)
    items = [{"row": row} for row in run.pending("caption")]
    if items and runs_on_cluster(settings):
        return run_on_cluster(run, "caption", run.fingerprints["caption"], {})
    result = run_stage(
        run, "caption", CaptionWorker, items, settings.caption.workers, (settings.models.captioner, settings.caption)
    )
    if items:
        row = next(row for row in run.shards("caption") if row.shard == items[0]["row"].shard)
        samples = list(read_tar(load_shard(run.store, row)))[:20]
        lines = [{"photo": sample.key[:16], "caption": sample.json()["caption"]} for sample in samples]
        artifacts.table("captions", lines, f"The first captions of shard {row.shard}")
    return result
