"""Stage 1b: every photo gets a signature; one that repeats an earlier photo is kept out of the training shards."""

import time

from flows import artifacts
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.model_stages import run_stage
from flows.run import Run, StageResult
from flows.signature_workers import SignatureWorker
from infra.settings import Settings
from preprocessing.catalog import REFUSED, PhotoRow, ShardRow, load_shard, store_shard
from preprocessing.near_duplicates import STAGE, Limits, find_repeats, say
from preprocessing.photos import Reason
from preprocessing.shards import encode_json, write_tar
from preprocessing.signatures import Signatures, joined, read_signatures


@stage_flow("duplicates")
def duplicates(settings: Settings) -> StageResult:
    """Sign the shards that have no signatures yet and decide on the photos that were not decided on."""
    started, run = time.monotonic(), Run(settings)
    if not settings.near_duplicates.search:
        return StageResult(STAGE, 0, 0, note="near_duplicates.search is false")
    items = [{"row": row} for row in run.pending("signatures")]
    if items and runs_on_cluster(settings):
        return run_on_cluster(run, STAGE, run.fingerprints[STAGE], {})
    arguments = (settings.models.clip, settings.signatures)
    run_stage(run, "signatures", SignatureWorker, items, settings.signatures.workers, arguments)
    before = len(run.shards(STAGE))
    rows, photos, count = decide(run)
    run.catalog.commit(rows, photos)  # all at once: half of a decision would be another one
    refusals = artifacts.Refusals(STAGE)
    refusals.add(photos)
    refusals.show()
    note = f"{len(photos)} of {count} new photos repeat another one" if rows else "no new photos"
    return StageResult(STAGE, len(rows), before, len(photos), time.monotonic() - started, note)


def decide(run: Run) -> tuple[list[ShardRow], list[PhotoRow], int]:
    """A row per new shard, a row per photo of it that repeats another, and how many photos were looked at."""
    fingerprint = run.fingerprints[STAGE]
    done = {row.shard for row in run.shards(STAGE)}
    signed = run.shards("signatures")
    pending = [row for row in signed if row.shard not in done]
    if not pending:
        return [], [], 0
    repeated = {row.key for row in run.catalog.photos(STAGE) if row.fingerprint == fingerprint}
    kept = signatures_of(run, [row for row in signed if row.shard in done])
    kept = kept.take([row for row, photo in enumerate(kept.photos) if photo.key not in repeated])
    parts = [signatures_of(run, [row]) for row in pending]
    new, listed = joined(parts), [part.photos for part in parts]
    del parts  # half of the memory
    settings = run.settings.near_duplicates
    with artifacts.Track("duplicates: photos", len(new)) as track:
        repeats = find_repeats(new, kept, Limits(settings.hash_distance, settings.cosine), track.to)
    found = {new.photos[row].key: repeat for row, repeat in repeats.items()}
    rows, photos = [], []
    for row, listed_there in zip(pending, listed, strict=True):
        written = []
        for photo in listed_there:
            if photo.key in found:
                leader, match = found[photo.key]
                about = (photo.key, photo.source, photo.origin, REFUSED, Reason.NEAR_DUPLICATE.value)
                photos.append(PhotoRow(STAGE, row.shard, *about, say(leader, match), fingerprint))
                written.append((photo.key, {"json": encode_json({"repeats": leader.key})}))
        rows.append(store_shard(run.store, STAGE, row.shard, fingerprint, write_tar(written), len(written), row.source))
    return rows, photos, len(new)


def signatures_of(run: Run, rows: list[ShardRow]) -> Signatures:
    """The signatures in these shards."""
    return read_signatures(load_shard(run.store, row) for row in rows)


def repeated_photos(run: Run) -> dict[str, frozenset[str]] | None:
    """Shard → the keys that stay out of its training shard, for each shard that was decided on; None: no search."""
    if STAGE not in run.fingerprints:
        return None
    found: dict[str, set[str]] = {row.shard: set() for row in run.shards(STAGE)}
    for photo in run.catalog.photos(STAGE):
        if photo.fingerprint == run.fingerprints[STAGE] and photo.shard in found:
            found[photo.shard].add(photo.key)
    return {shard: frozenset(keys) for shard, keys in found.items()}
