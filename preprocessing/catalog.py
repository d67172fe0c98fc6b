"""What is known of every photo and shard: one versioned, transactional table (Delta).

Photos and shards share one table, so one commit makes a shard and its photos visible together and one number, the
table's version, names everything that a training run read. A row never changes and carries no time: the same inputs
give the same rows, whatever was killed and repeated in between. (When a row was written is in Delta's own history.)
"""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar
from urllib.parse import unquote

import polars
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from infra.storage import ObjectStore

_NAME = "catalog"
_COLUMNS: dict[str, Any] = {
    "kind": polars.String,
    "stage": polars.String,
    "shard": polars.String,
    "key": polars.String,
    "source": polars.String,
    "origin": polars.String,
    "status": polars.String,
    "reason": polars.String,
    "detail": polars.String,
    "fingerprint": polars.String,
    "object_key": polars.String,
    "sha256": polars.String,
    "samples": polars.Int64,
}
# Writers that meet read the table again and try anew; each round one of them wins, so this many writers at once are
# safe.
_ATTEMPTS = 64
# No silent retry on a newer version: it may already hold the rows.
_ONE_TRY = CommitProperties(max_commit_retries=0)

KEPT = "kept"
REFUSED = "refused"
NOTED = "noted"
# The stage of `forgetting`. Its photo rows are what was forgotten; a shard row of its own says that the shard of that
# name, in every stage, is replaced by one without them.
FORGET = "forget"


@dataclass(frozen=True, slots=True)
class PhotoRow:
    """What became of one photo at one stage.

    stage: "ingest" for every photo; a later stage writes a row only for a photo that it refuses.
    status: kept or refused; noted (by "forget") where the row is about no photo here, but about one that may come.
    shard: the shard that the photo was in, "" where its whole chunk came to nothing.
    key: SHA-256 (hex) of the file's bytes, "" where they could not be read.
    origin: its stable name inside the source (POSIX relative path).
    reason: a `Reason`'s value, "" when kept. detail: one sentence for people.
    fingerprint: of the stage's settings and model; `Catalog.commit` copies it from the shard of the same commit.
    """

    stage: str
    shard: str
    key: str
    source: str
    origin: str
    status: str
    reason: str = ""
    detail: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One finished shard of one stage: where its bytes are and what they must hash to."""

    stage: str
    shard: str
    fingerprint: str
    object_key: str
    sha256: str
    samples: int
    source: str = ""


_Row = TypeVar("_Row", PhotoRow, ShardRow)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many photos came in, and where they are now: `seen == kept + sum(refused.values())`."""

    seen: int
    kept: int
    refused: Mapping[str, int]


class Catalog:
    """The table `catalog` of an object store. Cheap to make, holds no connection, can be pickled."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._read: tuple[int, polars.DataFrame] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_store": self._store, "_read": None}

    @property
    def version(self) -> int:
        """The number of the last commit, -1 while there is none."""
        table = self._table()
        return -1 if table is None else table.version()

    def commit(self, shards: Sequence[ShardRow] = (), photos: Sequence[PhotoRow] = ()) -> int:
        """Write the rows that are not there yet in one transaction and return the version that holds them all.

        Serialisable: a commit is accepted only on the version that it was compared with. A shard is known by (stage,
        shard, fingerprint), a photo by (stage, shard, key, source, origin, fingerprint).
        """
        fingerprints = {(shard.stage, shard.shard): shard.fingerprint for shard in shards}
        rows = {_identity(row): row for row in map(_shard_record, shards)}
        rows |= {_identity(row): row for row in (_photo_record(photo, fingerprints) for photo in photos)}
        conflict: DeltaError | None = None
        for _ in range(_ATTEMPTS):
            table = self._table()
            version = -1 if table is None else table.version()
            known = set() if table is None else {_identity(row) for row in self._frame(version).iter_rows(named=True)}
            new = [row for identity, row in rows.items() if identity not in known]
            if not new:
                return version
            frame = polars.DataFrame(new, schema=_COLUMNS)
            try:
                if table is None:
                    # "error": of several first writers one makes the table, the others come round again.
                    write_deltalake(
                        self._store.delta_uri(_NAME),
                        frame,
                        mode="error",
                        partition_by=["kind"],
                        storage_options=self._store.delta_options(),
                        commit_properties=_ONE_TRY,
                    )
                    return 0
                write_deltalake(table, frame, mode="append", commit_properties=_ONE_TRY)
                return version + 1
            except DeltaError as error:
                if not isinstance(error, CommitFailedError) and "already exists" not in str(error):
                    raise
                conflict = error
        raise RuntimeError(f"the catalog changed under {_ATTEMPTS} attempts to commit") from conflict

    def shards(self, stage: str | None = None, version: int | None = None, replaced: bool = False) -> list[ShardRow]:
        """The finished shards of one stage or of all, sorted by shard and fingerprint.

        replaced: also those that a forgetting replaced.
        """
        frame = self._current(version, replaced).filter(kind="shard")
        if stage is not None:
            frame = frame.filter(stage=stage)
        return _rows(frame.sort("shard", "fingerprint", "stage"), ShardRow)

    def photos(self, stage: str | None = None, version: int | None = None, replaced: bool = False) -> list[PhotoRow]:
        """The photo rows of one stage or of all, in a stable order; `replaced`: also those in replaced shards."""
        frame = self._current(version, replaced).filter(kind="photo")
        if stage is not None:
            frame = frame.filter(stage=stage)
        return _rows(frame.sort("stage", "source", "origin", "key", "shard", "fingerprint"), PhotoRow)

    def pending(
        self, stage: str, upstream: str, fingerprint: str, upstream_fingerprint: str | None = None
    ) -> list[ShardRow]:
        """The shards of `upstream` that `stage` has not yet finished with these settings."""
        done = {row.shard for row in self.shards(stage) if row.fingerprint == fingerprint}
        return [
            row
            for row in self.shards(upstream)
            if row.shard not in done and upstream_fingerprint in (None, row.fingerprint)
        ]

    def known_digests(self) -> set[str]:
        """The keys of all photos that were kept or forgotten: another file with the same bytes is a duplicate."""
        kept = {row.key for row in self.photos("ingest") if row.status == KEPT}
        return kept | {row.key for row in self.photos(FORGET) if row.key}

    def known_origins(self, source: str, retry: Collection[str] = ()) -> set[str]:
        """What has been read of a source already, kept or refused: it is not read again.

        retry: reasons whose cause may be gone by now (a broken link, an unreadable file); photos refused for them are
        left out.
        """
        rows = [row for row in self.photos("ingest") if row.source == source]
        forgotten = {row.origin for row in self.photos(FORGET) if row.source == source}
        return {row.origin for row in rows if row.status == KEPT or row.reason not in retry} | forgotten

    def counts(self, fingerprints: Mapping[str, str] | None = None, version: int | None = None) -> Counts:
        """Every photo once: kept, or refused for the first reason on its way.

        A photo that was refused and later mended and kept counts as kept. fingerprints: stage -> fingerprint; a later
        stage's refusals under other settings do not count. None: all count.
        """
        kept: set[tuple[str, str, str]] = set()
        early: dict[tuple[str, str], str] = {}
        late: dict[tuple[str, str, str], str] = {}
        for row in self.photos(version=version):
            photo = (row.source, row.origin, row.key)
            if row.status == KEPT:
                kept.add(photo)
            elif row.stage in ("ingest", FORGET):  # "forget" sorts first
                if row.status == REFUSED:
                    early.setdefault(photo[:2], row.reason)
            elif fingerprints is None or fingerprints.get(row.stage) == row.fingerprint:
                # Sorted by stage: caption, segment, shard, as on a photo's way.
                late.setdefault(photo, row.reason)
        mended = {photo[:2] for photo in kept}
        refused = Counter(reason for photo, reason in early.items() if photo not in mended)
        refused.update(reason for photo, reason in late.items() if photo in kept)
        seen = len(kept) + len(early.keys() - mended)
        return Counts(seen, seen - refused.total(), dict(sorted(refused.items())))

    def content_digest(self, version: int | None = None) -> str:
        """SHA-256 (hex) of the sorted rows: equal for two catalogs that say the same, whatever their history."""
        lines = sorted(json.dumps(row, sort_keys=True) for row in self._frame(version).iter_rows(named=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _current(self, version: int | None, replaced: bool) -> polars.DataFrame:
        """The rows of a version, without those of shards that a forgetting replaced unless they are asked for."""
        frame = self._frame(version)
        gone = frame.filter(kind="shard", stage=FORGET)["shard"]
        if replaced or gone.is_empty():
            return frame
        # "name-2" is a part of shard "name".
        name = polars.col("shard").str.split("-").list.first()
        return frame.filter((polars.col("stage") == FORGET) | ~name.is_in(gone.implode()))

    def _table(self, version: int | None = None) -> DeltaTable | None:
        try:
            return DeltaTable(self._store.delta_uri(_NAME), version, storage_options=self._store.delta_options())
        except TableNotFoundError:
            return None

    def _frame(self, version: int | None = None) -> polars.DataFrame:
        version = self.version if version is None else version
        if version < 0:
            return polars.DataFrame(schema=_COLUMNS)
        if self._read is None or self._read[0] != version:
            # Not DeltaTable.to_pyarrow_table, which makes the interpreter abort at exit now and then. Nor
            # polars.read_delta, which takes percent-encoded addresses for paths and finds nothing in "my photos".
            table = self._table(version)
            assert table is not None
            frame = polars.read_parquet(
                [unquote(address) for address in table.file_uris()],
                glob=False,
                hive_partitioning=True,
                hive_schema={"kind": polars.String},
                storage_options=self._store.delta_options(),
            )
            self._read = (version, frame.select(list(_COLUMNS)))
        return self._read[1]


def shard_object_key(stage: str, shard: str, sha256: str) -> str:
    """Where a shard's bytes live. With the digest in its name a committed file is never overwritten by other bytes."""
    return f"shards/{stage}/{shard}-{sha256[:16]}.tar"


def store_shard(
    store: ObjectStore, stage: str, shard: str, fingerprint: str, tar: bytes, samples: int, source: str = ""
) -> ShardRow:
    """Upload a shard and return the row that makes it visible once committed; repeating it is harmless."""
    sha256 = hashlib.sha256(tar).hexdigest()
    object_key = shard_object_key(stage, shard, sha256)
    store.put(object_key, tar)
    return ShardRow(stage, shard, fingerprint, object_key, sha256, samples, source)


def load_shard(store: ObjectStore, row: ShardRow) -> bytes:
    """Fetch a shard's bytes; ValueError where they are not those that were committed."""
    tar = store.get(row.object_key)
    if hashlib.sha256(tar).hexdigest() != row.sha256:
        raise ValueError(f"{row.object_key} is not the file that the catalog names (SHA-256 differs)")
    return tar


def sweep(store: ObjectStore, catalog: Catalog, stages: Iterable[str]) -> list[str]:
    """Delete shard files that no commit names: a crash before the commit leaves them. Nobody may be writing."""
    removed = []
    for stage in stages:
        named = {row.object_key for row in catalog.shards(stage, replaced=True)}
        for key in store.list(f"shards/{stage}/"):
            if key not in named:
                store.delete(key)
                removed.append(key)
    return removed


def _photo_record(photo: PhotoRow, fingerprints: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    record = _record("photo", photo)
    record["fingerprint"] = record["fingerprint"] or fingerprints.get((photo.stage, photo.shard), "")
    return record


def _shard_record(shard: ShardRow) -> dict[str, Any]:
    return _record("shard", shard)


def _record(kind: str, row: PhotoRow | ShardRow) -> dict[str, Any]:
    empty: dict[str, Any] = {column: "" for column in _COLUMNS}
    values = {field.name: getattr(row, field.name) for field in fields(row)}
    # str(): a StrEnum goes into the table as its plain value.
    return {**empty, "samples": 0, **{k: v if isinstance(v, int) else str(v) for k, v in values.items()}, "kind": kind}


def _identity(record: Mapping[str, Any]) -> tuple[str, ...]:
    columns = ["kind", "stage", "shard", "fingerprint"]
    if record["kind"] == "photo":
        columns += ["key", "source", "origin"]
    return tuple(record[column] for column in columns)


def _rows(frame: polars.DataFrame, row_type: type[_Row]) -> list[_Row]:
    return [row_type(**row) for row in frame.select([field.name for field in fields(row_type)]).iter_rows(named=True)]
