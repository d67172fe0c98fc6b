"""The licences of what a training read, for its release's card."""

import json
from collections import Counter
from typing import Any

from flows import artifacts
from flows.run import Run
from preprocessing.catalog import ShardRow, load_shard
from preprocessing.licences import collection_terms, is_non_commercial, shard_licences
from preprocessing.shards import encode_json


def training_licences(run: Run, version: int, without: list[str]) -> list[dict[str, Any]]:
    """{"source", "licence", "consent", "photos", "non_commercial", "terms"} of a catalog version's training shards, the
    most frequent first. without: names of shards that the training passed over.

    A shard is read once: what it says is kept in the store under its digest.
    """
    shards = [row for row in run.training_shards(version) if row.shard not in without]
    counted: Counter[tuple[str, str, str]] = Counter()
    for row in artifacts.tracked(shards, len(shards), "publish: licences"):
        for source, licence, consent, photos in _of_shard(run, row):
            counted[source, licence, consent] += photos
    return [
        {
            "source": source,
            "licence": licence,
            "consent": consent,
            "photos": photos,
            "non_commercial": is_non_commercial(source, licence),
            "terms": collection_terms(source),
        }
        for (source, licence, consent), photos in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    ]


def _of_shard(run: Run, row: ShardRow) -> list[tuple[str, str, str, int]]:
    key = f"licences/{row.sha256}.json"
    try:
        found = json.loads(run.store.get(key))["licences"]
    except KeyError:
        counts = shard_licences(load_shard(run.store, row))
        found = [[source, licence, photos, consent] for (source, licence, consent), photos in sorted(counts.items())]
        run.store.put(key, encode_json({"licences": found}))
    # Written before consent was known, there are three.
    return [(source, licence, "".join(consent), photos) for source, licence, photos, *consent in found]
