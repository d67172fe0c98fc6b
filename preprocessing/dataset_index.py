"""The index of a dataset version: which tars it consists of, in the JSON that `wids` reads.

Beside the shards (`shards/training-DIGEST.json`), with addresses relative to itself, so that the folder can be copied
or served as it is. Its name follows from its content: the same shards have the same index. A tar needs no index of its
own: wids maps it and walks its headers, and webdataset streams.
"""

import hashlib
import json
import posixpath
from collections.abc import Sequence

from infra.storage import ObjectStore
from preprocessing.catalog import ShardRow

_FOLDER = "shards"


def dataset_index(rows: Sequence[ShardRow], name: str) -> bytes:
    """wids' description, version 1, of shards under `shards/`: `url`, `nsamples`, and `sha256` for whoever checks."""
    shards = [
        {"url": posixpath.relpath(row.object_key, _FOLDER), "nsamples": row.samples, "sha256": row.sha256}
        for row in sorted(rows, key=lambda row: row.shard)
    ]
    about = {"wids_version": 1, "name": name, "nsamples": sum(row.samples for row in rows), "shardlist": shards}
    return (json.dumps(about, indent=1) + "\n").encode()


def index_key(rows: Sequence[ShardRow]) -> str:
    """Where the index of exactly these shards lies."""
    text = "\n".join(sorted(f"{row.shard} {row.sha256}" for row in rows))
    return f"{_FOLDER}/training-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def store_index(store: ObjectStore, rows: Sequence[ShardRow], name: str) -> str:
    """Write the index where it is not there yet and return its key."""
    key = index_key(rows)
    if not store.exists(key):
        store.put(key, dataset_index(rows, name))
    return key
