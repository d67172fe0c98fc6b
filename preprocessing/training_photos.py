"""Which photos a training reads, from the catalog's rows alone: the shards themselves may be gone by then."""

from collections.abc import Mapping

from preprocessing.catalog import FORGET, KEPT, Catalog, PhotoRow


def training_photos(
    catalog: Catalog, fingerprints: Mapping[str, str], version: int | None = None
) -> dict[str, PhotoRow]:
    """Key → row of every photo in the training shards of a catalog version.

    fingerprints: stage → fingerprint of the run in question, as a release's lineage names them.
    """
    # "name-2" is a part of shard "name".
    built = {
        row.shard.partition("-")[0]
        for row in catalog.shards("shard", version)
        if row.fingerprint == fingerprints["shard"] and row.samples
    }
    kept: dict[str, PhotoRow] = {}
    refused: set[str] = set()
    for row in catalog.photos(version=version):
        if row.stage == "ingest":
            if row.status == KEPT and row.shard in built:
                kept[row.key] = row
        elif row.stage != FORGET and fingerprints.get(row.stage) == row.fingerprint:
            refused.add(row.key)
    return {key: row for key, row in kept.items() if key not in refused}
