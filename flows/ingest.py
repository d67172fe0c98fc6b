"""Stage 1: new photos of a source are read, checked, cropped and stored as shards."""

import time
from typing import Any

from prefect import flow

from flows import artifacts
from flows.run import Run, StageResult
from flows.workers import IngestWorker
from infra.errors import UserError
from infra.ray_session import map_shards
from infra.settings import Settings
from preprocessing.catalog import KEPT, PhotoRow
from preprocessing.ingesting import chunk
from preprocessing.photos import Reason
from preprocessing.places import is_readable
from preprocessing.sources import Record


@flow(name="ingest")
def ingest(settings: Settings) -> StageResult:
    """Read what the catalog does not know of the source yet."""
    started, run = time.monotonic(), Run(settings)
    before = run.catalog.shards("ingest")
    if any(row.fingerprint != run.fingerprints["ingest"] for row in before):
        raise UserError(
            f"The photos in {settings.store_root} were ingested with other ingest settings: "
            "restore them, or choose another --workspace."
        )
    records = new_photos(settings)
    if not records:
        return StageResult("ingest", 0, len(before), seconds=time.monotonic() - started, note="no new photos")
    rows = read_photos(settings, records)
    kept = sum(row.status == KEPT for row in rows)
    artifacts.refusals("ingest", rows)
    artifacts.markdown("ingest", f"{len(rows)} photos read: {kept} kept, {len(rows) - kept} refused.")
    return StageResult(
        "ingest",
        len(run.shards("ingest")) - len(before),
        len(before),
        len(rows) - kept,
        time.monotonic() - started,
        f"{len(rows)} new photos, {kept} kept",
    )


def new_photos(settings: Settings) -> list[Record]:
    """The source's photos that have not been read yet, in its order; behind them those that can be read by now."""
    run = Run(settings)
    with artifacts.console.status("ingest: looking for new photos"), artifacts.telling() as tell:
        source = run.open_source(settings.ingest.source, tell)
        known = run.catalog.known_origins(source.name)
        retry = [reason for reason in Reason if reason.may_mend]
        mending = known - run.catalog.known_origins(source.name, retry)
        new, mended = list[Record](), list[Record]()
        for record in source.records():  # names only: nothing is opened, and what is known is not kept
            if record.origin not in known:
                new.append(record)
            elif record.origin in mending and record.problem is None and is_readable(record.path):
                mended.append(record)
    return new + mended


def read_photos(settings: Settings, records: list[Record]) -> list[PhotoRow]:
    """Chunks are read side by side and committed in the source's order, so that a repeat meets the same chunks."""
    run = Run(settings)
    chunks = list(chunk(records, settings.ingest.photos_per_shard))
    known = run.catalog.known_digests()
    arguments = (run.store, settings.ingest, run.fingerprints["ingest"])
    items = [{"index": index, "records": batch} for index, batch in enumerate(chunks)]
    results = map_shards(IngestWorker, items, settings.ingest.workers, (*arguments, frozenset(known)))
    waiting: dict[int, dict[str, Any]] = {}
    rows: list[PhotoRow] = []
    following = 0
    for result in artifacts.tracked(results, len(items), "ingest: shards"):
        waiting[result["index"]] = result
        while following in waiting:
            ready = waiting.pop(following)
            if not known.isdisjoint(ready["keys"]):  # an earlier chunk kept the same photo
                ready = IngestWorker(*arguments, frozenset(known))(items[following])
            run.catalog.commit([ready["shard"]] if ready["shard"] else [], ready["photos"])
            known.update(ready["keys"])
            rows += ready["photos"]
            following += 1
    return rows
