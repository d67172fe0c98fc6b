"""`moa export`: the training samples of the catalog in other projects' formats."""

from pathlib import Path

from flows import artifacts
from flows.run import Run
from infra.access_log import note_access
from infra.errors import UserError, written_by_us
from infra.settings import Settings
from preprocessing.catalog import load_shard
from preprocessing.exporting import FastComposerExport


def export_fastcomposer(settings: Settings, directory: Path) -> FastComposerExport:
    """Write all training samples under `directory`; UserError where there are none or where it cannot be written."""
    run = Run(settings)
    shards = run.training_shards()
    if not shards:
        raise UserError(f"There are no training samples in {settings.store_root}: run moa ingest … shard first.")
    note_access(run.store, "export", f"{sum(row.samples for row in shards)} samples of {len(shards)} shards")
    with written_by_us(directory, "name another folder"):
        export = FastComposerExport(directory, shards)
        pending = export.pending()
        for row in artifacts.tracked(pending, len(pending), "export: shards"):
            export.add(row, load_shard(run.store, row))
        export.finish()
    return export
