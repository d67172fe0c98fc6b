"""What is known of every photo and shard: one versioned, transactional table (Delta).

Photos and shards share one table, so one commit makes a shard and its photos visible together and one number, the
table's version, names everything that a training run read. A row never changes and carries no time: the same inputs
give the same rows, whatever was killed and repeated in between. (When a row was written is in Delta's own history.)
Questions are answered in columns (polars); only what leaves as `ShardRow` or `PhotoRow` becomes an object.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar

import polars

from infra.storage import ObjectStore
from preprocessing.catalog_table import CatalogTable

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
# What makes a row the same row.
_IDENTITY = {
    "shard": ["stage", "shard", "fingerprint"],
    "photo": ["stage", "shard", "key", "source", "origin", "fingerprint"],
}
_PHOTO = ["source", "origin", "key"]  # what names a photo in any row
# Writers that meet read what is new and try again; each round one of them wins, so this many writers at once are safe.
_ATTEMPTS = 64
# Characters of which JSON says nothing else than themselves.
_NOT_PLAIN = r"[^ !#-\[\]-~]"

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

    def __reduce__(self) -> tuple[Any, ...]:
        """Rows travel between processes by the thousand: dataclasses' own way takes two to four times as long."""
        return PhotoRow, _PHOTO_VALUES(self)


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
_PHOTO_VALUES = attrgetter(*(field.name for field in fields(PhotoRow)))


@dataclass(frozen=True, slots=True)
class Counts:
    """How many photos came in, and where they are now: `seen == kept + sum(refused.values())`."""

    seen: int
    kept: int
    refused: Mapping[str, int]


class Catalog:
    """The table `catalog` of an object store. Cheap to make; can be pickled, and used by several threads.

    It remembers what it has read: a question after a commit reads what the commit added.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._table = CatalogTable(store, _NAME, _COLUMNS)

    @property
    def version(self) -> int:
        """The number of the last commit, -1 while there is none."""
        return self._table.version

    def commit(self, shards: Sequence[ShardRow] = (), photos: Sequence[PhotoRow] = ()) -> int:
        """Write the rows that are not there yet in one transaction and return a version that holds them all.

        Serialisable: a commit is accepted only on the version that it was compared with. A shard is known by (stage,
        shard, fingerprint), a photo by (stage, shard, key, source, origin, fingerprint). A commit may be followed by a
        version that says the same in fewer files.
        """
        fingerprints = {(shard.stage, shard.shard): shard.fingerprint for shard in shards}
        rows = {"shard": _frame("shard", shards), "photo": _frame("photo", photos, fingerprints)}
        for _ in range(_ATTEMPTS):
            version = self._table.version
            new = polars.concat([self._unknown(kind, frame, version) for kind, frame in rows.items()])
            if new.is_empty():
                return version
            if self._table.append(new, version):
                self._table.compact()
                return version + 1
        raise RuntimeError(f"the catalog changed under {_ATTEMPTS} attempts to commit")

    def _unknown(self, kind: str, rows: polars.DataFrame, version: int) -> polars.DataFrame:
        """The rows that the version does not hold."""
        if rows.is_empty():
            return rows
        identity = _IDENTITY[kind]
        # The large table is on the left, so that a join hashes the few rows and looks through the many.
        there = self._table.frame(kind, version).join(rows.select(identity), on=identity, how="semi")
        return rows.join(there.select(identity), on=identity, how="anti", maintain_order="left")

    def shard_frame(
        self, stage: str | None = None, version: int | None = None, replaced: bool = False
    ) -> polars.DataFrame:
        """The shard rows as a table with `ShardRow`'s columns, in no order; `replaced`: see `shards`."""
        rows = self._current(self._table.frame("shard", version), version, replaced)
        return _of_stage(rows, stage).select(_names(ShardRow))

    def photo_frame(
        self, stage: str | None = None, version: int | None = None, replaced: bool = False
    ) -> polars.DataFrame:
        """The photo rows as a table with `PhotoRow`'s columns, in no order; `replaced`: see `photos`."""
        rows = self._current(self._table.frame("photo", version), version, replaced)
        return _of_stage(rows, stage).select(_names(PhotoRow))

    def _current(self, rows: polars.DataFrame, version: int | None, replaced: bool) -> polars.DataFrame:
        """The rows without those of shards that a forgetting replaced, unless they are asked for."""
        gone = self._table.frame("shard", version).filter(stage=FORGET)["shard"]
        if replaced or gone.is_empty():
            return rows
        # "name-2" is a part of shard "name".
        name = polars.col("shard").str.split("-").list.first()
        return rows.filter((polars.col("stage") == FORGET) | ~name.is_in(gone.implode()))

    def shards(self, stage: str | None = None, version: int | None = None, replaced: bool = False) -> list[ShardRow]:
        """The finished shards of one stage or of all, sorted by shard and fingerprint.

        replaced: also those that a forgetting replaced.
        """
        return _rows(self.shard_frame(stage, version, replaced).sort("shard", "fingerprint", "stage"), ShardRow)

    def photos(self, stage: str | None = None, version: int | None = None, replaced: bool = False) -> list[PhotoRow]:
        """The photo rows of one stage or of all, in a stable order; `replaced`: also those in replaced shards."""
        frame = self.photo_frame(stage, version, replaced)
        return _rows(frame.sort("stage", "source", "origin", "key", "shard", "fingerprint"), PhotoRow)

    def pending(
        self, stage: str, upstream: str, fingerprint: str, upstream_fingerprint: str | None = None
    ) -> list[ShardRow]:
        """The shards of `upstream` that `stage` has not yet finished with these settings."""
        frame = self.shard_frame()
        done = frame.filter(stage=stage, fingerprint=fingerprint)
        waiting = frame.filter(stage=upstream).join(done, on="shard", how="anti")
        if upstream_fingerprint is not None:
            waiting = waiting.filter(fingerprint=upstream_fingerprint)
        return _rows(waiting.sort("shard", "fingerprint"), ShardRow)

    def known_digests(self) -> set[str]:
        """The keys of all photos that were kept or forgotten: another file with the same bytes is a duplicate."""
        rows = self.photo_frame()
        kept = (polars.col("stage") == "ingest") & (polars.col("status") == KEPT)
        forgotten = (polars.col("stage") == FORGET) & (polars.col("key") != "")
        return set(rows.filter(kept | forgotten)["key"])

    def known_origins(self, source: str, retry: Collection[str] = ()) -> set[str]:
        """What has been read of a source already, kept or refused: it is not read again.

        retry: reasons whose cause may be gone by now (a broken link, an unreadable file); photos refused for them are
        left out.
        """
        rows = self.photo_frame().filter(source=source)
        mendable = polars.col("reason").is_in([str(reason) for reason in retry])
        read = (polars.col("stage") == "ingest") & ((polars.col("status") == KEPT) | ~mendable)
        return set(rows.filter(read | (polars.col("stage") == FORGET))["origin"])

    def counts(self, fingerprints: Mapping[str, str] | None = None, version: int | None = None) -> Counts:
        """Every photo once: kept, or refused for the first reason on its way.

        A photo that was refused and later mended and kept counts as kept. fingerprints: stage -> fingerprint; a later
        stage's refusals under other settings do not count. None: all count.
        """
        fates = self.fates(fingerprints, version)
        refused = fates.filter(polars.col("reason") != "").group_by("reason").len().sort("reason")
        reasons = dict(zip(refused["reason"], refused["len"], strict=True))
        return Counts(fates.height, fates.height - sum(reasons.values()), reasons)

    def fates(self, fingerprints: Mapping[str, str] | None = None, version: int | None = None) -> polars.DataFrame:
        """Every photo once: source, origin, key, shard, and of the refused ones stage, reason and detail ("" else).

        As `counts`, whose sum this is.
        """
        # Sorted by stage: "forget" comes before "ingest".
        photos = self.photo_frame(version=version).sort("stage", *_PHOTO, "shard", "fingerprint")
        columns = [*_PHOTO, "shard", "stage", "reason", "detail"]
        kept = photos.filter(status=KEPT).unique(_PHOTO, keep="first", maintain_order=True)
        refused = photos.filter(status=REFUSED)
        first = polars.col("stage").is_in([FORGET, "ingest"])
        early = refused.filter(first).unique(["source", "origin"], keep="first", maintain_order=True)
        early = early.join(kept, on=["source", "origin"], how="anti")  # the others were mended
        late = refused.filter(~first)
        if fingerprints is not None:
            pairs = {"stage": list(fingerprints), "fingerprint": list(fingerprints.values())}
            current = polars.DataFrame(pairs, {"stage": polars.String, "fingerprint": polars.String})
            late = late.join(current, on=["stage", "fingerprint"], how="semi", maintain_order="left")
        # Sorted by stage: caption, segment, shard, as on a photo's way.
        late = late.join(kept, on=_PHOTO, how="semi", maintain_order="left").unique(
            _PHOTO, keep="first", maintain_order=True
        )
        good = kept.join(late, on=_PHOTO, how="anti").with_columns(stage=polars.lit(""), detail=polars.lit(""))
        return polars.concat([frame.select(columns) for frame in (good, early, late)]).sort(_PHOTO)

    def content_digest(self, version: int | None = None) -> str:
        """SHA-256 (hex) of the sorted rows: equal for two catalogs that say the same, whatever their history."""
        version = self.version if version is None else version
        lines = polars.concat([_json_lines(kind, self._table.frame(kind, version)) for kind in _IDENTITY]).sort()
        digest = hashlib.sha256()
        for start in range(0, len(lines), 10_000):
            digest.update(("\n" * (start > 0) + "\n".join(lines[start : start + 10_000])).encode())
        return digest.hexdigest()

    def history(self) -> list[dict[str, Any]]:
        """Delta's own record of every version, newest first: "version", "timestamp" (ms), "operation" and more."""
        return self._table.history()


def shard_object_key(stage: str, shard: str, sha256: str) -> str:
    """Where a shard's bytes live. With the digest in its name a committed file is never overwritten by other bytes."""
    return f"shards/{stage}/{shard}-{sha256[:16]}.tar"


def store_shard(
    store: ObjectStore,
    stage: str,
    shard: str,
    fingerprint: str,
    tar: bytes | Sequence[bytes],
    samples: int,
    source: str = "",
) -> ShardRow:
    """Upload a shard, whole or in pieces, and return the row that makes it visible once committed.

    Repeating it is harmless.
    """
    with ThreadPoolExecutor(1) as hashing:  # while it is written
        sha256 = hashing.submit(_sha256, [tar] if isinstance(tar, bytes) else tar)
        store.put(lambda: shard_object_key(stage, shard, sha256.result()), tar)
    object_key = shard_object_key(stage, shard, sha256.result())
    return ShardRow(stage, shard, fingerprint, object_key, sha256.result(), samples, source)


def _sha256(pieces: Sequence[bytes]) -> str:
    hashed = hashlib.sha256()
    for piece in pieces:
        hashed.update(piece)
    return hashed.hexdigest()


def load_shard(store: ObjectStore, row: ShardRow) -> bytes:
    """Fetch a shard's bytes; ValueError where they are not those that were committed."""
    tar = store.get(row.object_key)
    if hashlib.sha256(tar).hexdigest() != row.sha256:
        raise ValueError(f"{row.object_key} is not the file that the catalog names (SHA-256 differs)")
    return tar


def sweep(store: ObjectStore, catalog: Catalog, stages: Iterable[str]) -> list[str]:
    """Delete shard files that no commit names: a crash before the commit leaves them. Nobody may be writing."""
    removed = litter(store, catalog, stages)
    for key in removed:
        store.delete(key)
    return removed


def litter(store: ObjectStore, catalog: Catalog, stages: Iterable[str]) -> list[str]:
    """What `sweep` deletes."""
    found = []
    for stage in stages:
        named = set(catalog.shard_frame(stage, replaced=True)["object_key"])
        found += [key for key in store.list(f"shards/{stage}/") if key not in named]
    return found


def _frame(
    kind: str, rows: Sequence[PhotoRow] | Sequence[ShardRow], fingerprints: Mapping[tuple[str, str], str] | None = None
) -> polars.DataFrame:
    """The rows as a table of all columns; the last of several with the same identity."""
    # Column by column: a loop over rows and columns in Python takes three times as long, a hundredth of tiny shards.
    columns: dict[str, list[Any]] = {name: [""] * len(rows) for name in _COLUMNS}
    columns |= {"kind": [kind] * len(rows), "samples": [0] * len(rows)}
    for name in _names(PhotoRow if kind == "photo" else ShardRow):
        # A StrEnum goes into the table as its plain value.
        columns[name] = list(map(int if name == "samples" else str, map(attrgetter(name), rows)))
    frame = polars.DataFrame(columns, schema=_COLUMNS)
    if fingerprints:
        shared = polars.DataFrame(
            [(*k, v) for k, v in fingerprints.items()], ["stage", "shard", "shared"], orient="row"
        )
        frame = frame.join(shared, on=["stage", "shard"], how="left", maintain_order="left")
        empty = polars.col("fingerprint") == ""
        own = polars.when(empty).then(polars.col("shared").fill_null("")).otherwise("fingerprint")
        frame = frame.with_columns(fingerprint=own).drop("shared")
    return frame.unique(_IDENTITY[kind], keep="last", maintain_order=True)


def _json_lines(kind: str, frame: polars.DataFrame) -> polars.Series:
    """Each row as `json.dumps(row, sort_keys=True)` writes it."""
    frame = frame.with_columns(kind=polars.lit(kind)).select(sorted(_COLUMNS))
    texts = [name for name in frame.columns if name != "samples"]
    plain = ~polars.any_horizontal(polars.col(name).str.contains(_NOT_PLAIN) for name in texts)
    parts: list[Any] = []
    for i, name in enumerate(frame.columns):
        quote = "" if name == "samples" else '"'
        parts += [polars.lit(f'{", " if i else "{"}"{name}": {quote}'), polars.col(name), polars.lit(quote)]
    simple = frame.filter(plain).select(polars.concat_str([*parts, polars.lit("}")]).alias("line"))["line"]
    others = [json.dumps(row, sort_keys=True) for row in frame.filter(~plain).iter_rows(named=True)]
    return polars.concat([simple, polars.Series("line", others, polars.String)])


def _of_stage(frame: polars.DataFrame, stage: str | None) -> polars.DataFrame:
    return frame if stage is None else frame.filter(stage=stage)


def _names(row_type: type) -> list[str]:
    return [field.name for field in fields(row_type)]


def _rows(frame: polars.DataFrame, row_type: type[_Row]) -> list[_Row]:
    return [row_type(*row) for row in frame.select(_names(row_type)).iter_rows()]
