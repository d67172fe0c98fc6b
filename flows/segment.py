"""Stage 3: every photo gets the masks of its people."""

from flows import artifacts
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.model_stages import run_stage
from flows.run import Run, StageResult
from flows.samples import shown_people
from flows.workers import SegmentWorker
from infra.settings import Settings
from preprocessing.catalog import load_shard
from preprocessing.shards import read_tar


@stage_flow("segment")
def segment(settings: Settings) -> StageResult:
    """Segment the shards that have no masks yet."""
    run = Run(settings)
    items = [{"row": row} for row in run.pending("segment")]
    if items and runs_on_cluster(settings):
        return run_on_cluster(run, "segment", run.fingerprints["segment"], {})
    arguments = (settings.models.segmenter, settings.segment, settings.filter.find_faces)
    result = run_stage(run, "segment", SegmentWorker, items, settings.segment.workers, arguments)
    if items:
        first = items[0]["row"]
        masks = next(row for row in run.shards("segment") if row.shard == first.shard)
        photos = {sample.key: sample for sample in read_tar(load_shard(run.store, first))}
        segmented = list(read_tar(load_shard(run.store, masks)))[:16]
        shown = [shown_people(photos[sample.key], sample) for sample in segmented]
        artifacts.pictures("masks", shown, f"People found in shard {first.shard}")
    return result
