"""Stage 1: new photos of a source are read, checked, cropped and stored as shards."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from flows import artifacts, events
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.model_stages import written_down
from flows.run import Run, StageResult
from flows.workers import IngestWorker
from infra.errors import UserError
from infra.ray_session import map_shards
from infra.settings import IngestSettings, Settings
from preprocessing.catalog import PhotoRow
from preprocessing.commits import CommitBuffer
from preprocessing.forgetting import forgotten_keys, forgotten_people
from preprocessing.ingesting import chunk
from preprocessing.photos import Reason
from preprocessing.places import is_readable
from preprocessing.sources import Record


@stage_flow("ingest")
def ingest(settings: Settings) -> StageResult:
    """Read what the catalog does not know of the source yet."""
    run = Run(settings)
    if runs_on_cluster(settings):
        result = run_on_cluster(run, "ingest", [run.fingerprints["ingest"], settings.ingest.source], {})
    else:
        result = _ingest_here(run)
    if result.facts:
        events.tell(settings, events.INGESTED, says=result.note, refused=result.refused, **result.facts)
    return result


def _ingest_here(run: Run) -> StageResult:
    started, settings = time.monotonic(), run.settings
    before = run.done("ingest")
    if run.catalog.shard_frame("ingest").height != before:
        raise UserError(
            f"The photos in {settings.store_root} were ingested with other ingest settings: "
            "restore them, or choose another --workspace."
        )
    records = new_photos(settings)
    if not records:
        return StageResult("ingest", 0, before, seconds=time.monotonic() - started, note="no new photos")
    refusals = read_photos(settings, records)
    kept = len(records) - refusals.count
    refusals.show()
    artifacts.markdown("ingest", f"{len(records)} photos read: {kept} kept, {refusals.count} refused.")
    return StageResult(
        "ingest",
        run.done("ingest") - before,
        before,
        refusals.count,
        time.monotonic() - started,
        f"{len(records)} new photos, {kept} kept",
        {"read": len(records), "kept": kept},
    )


def new_photos(settings: Settings) -> list[Record]:
    """The source's photos that have not been read yet, in its order; behind them those that can be read by now."""
    run = Run(settings)
    splits, forgotten = settings.ingest.splits, forgotten_people(run.catalog)
    with artifacts.console.status("ingest: looking for new photos"), artifacts.telling() as tell:
        source = run.open_source(settings.ingest.source, tell)
        known = run.catalog.known_origins(source.name)
        retry = [reason for reason in Reason if reason.may_mend]
        mending = known - run.catalog.known_origins(source.name, retry)
        new, mended = list[Record](), list[Record]()
        for record in source.records():  # names only: nothing is opened, and what is known is not kept
            if splits and record.split not in splits:
                continue
            if record.origin not in known:
                new.append(_unless_forgotten(_with_terms(record, settings.ingest), forgotten))
            elif record.origin in mending and record.problem is None and is_readable(record.path):
                mended.append(_unless_forgotten(_with_terms(record, settings.ingest), forgotten))
    return new + mended


def _with_terms(record: Record, settings: IngestSettings) -> Record:
    """What files beside a photo say comes later, and goes before this."""
    license, consent = record.license or settings.license, record.consent or settings.consent
    if (license, consent) == (record.license, record.consent):
        return record
    return replace(record, license=license, consent=consent)


def _unless_forgotten(record: Record, people: Mapping[str, str]) -> Record:
    why = people.get(f"{record.source}:{record.identity}") if record.identity else None
    return record if why is None else replace(record, problem=(Reason.FORGOTTEN, why))


def read_photos(settings: Settings, records: Sequence[Record]) -> artifacts.Refusals:
    """Chunks are read side by side and committed in the source's order, so that a repeat meets the same chunks."""
    run = Run(settings)
    size, workers = settings.ingest.photos_per_shard, settings.ingest.workers
    total = -(-len(records) // size)
    known, forgotten = run.catalog.known_digests(), forgotten_keys(run.catalog)
    arguments = (run.store, settings.ingest, run.fingerprints["ingest"])
    chunks: dict[int, list[Record]] = {}  # those whose result is not in
    waiting: dict[int, dict[str, Any]] = {}
    refusals = artifacts.Refusals("ingest")
    following = 0

    def items() -> Iterator[dict[str, Any]]:
        for index, batch in enumerate(chunk(records, size)):
            chunks[index] = batch
            yield {"index": index, "records": batch}

    results = map_shards(IngestWorker, items(), workers, (*arguments, frozenset(known)), total)
    with closing(results), written_down(run, "ingest", workers) as clock, CommitBuffer(run.catalog) as buffer:
        for result in artifacts.tracked(results, total, "ingest: shards"):
            waiting[result["index"]] = result
            while following in waiting:
                ready, batch = waiting.pop(following), chunks.pop(following)
                if not known.isdisjoint(ready["keys"]):  # an earlier chunk kept the same photo
                    ready = IngestWorker(*arguments, known)({"index": following, "records": batch})
                photos = [_as_forgotten(row, forgotten) for row in ready["photos"]]
                buffer.add([ready["shard"]] if ready["shard"] else [], photos)
                known.update(ready["keys"])
                refusals.add(photos)
                clock.tick(len(batch))
                following += 1
    return refusals


def _as_forgotten(row: PhotoRow, forgotten: Mapping[str, str]) -> PhotoRow:
    """Forgotten bytes under another name are refused as known ones; the catalog should say why they are."""
    if row.reason != Reason.DUPLICATE or row.key not in forgotten:
        return row
    return replace(row, reason=Reason.FORGOTTEN.value, detail=forgotten[row.key])
