"""The Delta table under the catalog: read once and then only what newer versions added, appended to, kept in few files.

A version is a list of immutable Parquet files. What was read of a file stays in memory, so a new version costs the
files that it added. Appending is optimistic: it succeeds on exactly the version that was looked at, or not at all.
Many small files are merged from time to time ("compaction"); the merged-away files and the whole log stay where they
are, so that every version ever named remains readable.
"""

import io
import json
import secrets
import threading
import time
from typing import Any
from urllib.parse import unquote

import polars
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from infra.storage import ObjectStore

PARTITION = "kind"
# No silent retry on a newer version: it may already hold the rows.
_ONE_TRY = CommitProperties(max_commit_retries=0)
# A checkpoint of the log every 100 commits; the log's entries before it are kept, or old versions could not be read.
_HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)
_KEEP_EVERYTHING = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
}
# Compaction merges the files below this size once there are too many of them. A file that has grown beyond it is left
# alone from then on, so each row is rewritten a bounded number of times, however large the table.
_SMALL_BYTES = 8 * 2**20
_MANY_FILES = 64
_MANY_PIECES = 32


class CatalogTable:
    """A table of one schema, partitioned by `kind`. Cheap to make; can be pickled and shared by threads."""

    def __init__(self, store: ObjectStore, name: str, columns: dict[str, Any]) -> None:
        self._store, self._name, self._columns = store, name, columns
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._handle: DeltaTable | None = None
        # kind -> [(the files, their rows)]
        self._pieces: dict[str, list[tuple[frozenset[str], polars.DataFrame]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_store", "_name", "_columns")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    @property
    def version(self) -> int:
        """The number of the last commit, -1 while there is none."""
        with self._lock:
            if self._handle is None:
                self._handle = self._open()
            else:
                self._handle.update_incremental()
            return -1 if self._handle is None else self._handle.version()

    def frame(self, kind: str, version: int | None = None) -> polars.DataFrame:
        """The rows of a kind, without the column `kind`, in no order. version: None = the newest there is."""
        with self._lock:
            known = -1 if self._handle is None else self._handle.version()
            if version is None or version > known:
                known = self.version
            if version is not None and version < 0 or self._handle is None:
                return self._no_rows()
            if version is None or version == known:
                return self._read(kind, self._handle, keep=True)
            table = self._open(version)
            assert table is not None
            return self._read(kind, table, keep=False)

    def append(self, rows: polars.DataFrame, version: int) -> bool:
        """Write the rows as the version after `version`; False where another was quicker."""
        with self._lock:
            if (-1 if self._handle is None else self._handle.version()) != version:
                return False  # another thread of this process was quicker
            try:
                if self._handle is None:
                    # "error": of several first writers one makes the table.
                    write_deltalake(
                        self._store.delta_uri(self._name),
                        rows,
                        mode="error",
                        partition_by=[PARTITION],
                        storage_options=self._store.delta_options(),
                        configuration=_KEEP_EVERYTHING,
                        commit_properties=_ONE_TRY,
                    )
                else:
                    write_deltalake(
                        self._handle,
                        rows,
                        mode="append",
                        commit_properties=_ONE_TRY,
                        post_commithook_properties=_HOOKS,
                    )
            except DeltaError as error:
                if not isinstance(error, CommitFailedError) and "already exists" not in str(error):
                    raise
                return False
            return True

    def history(self) -> list[dict[str, Any]]:
        """Delta's own record of every version, newest first."""
        with self._lock:
            return [] if self.version < 0 or self._handle is None else self._handle.history()

    def compact(self) -> bool:
        """Merge small files where there are many of them, as a version of its own with the same rows.

        The log's entry is created only if its number is free. (deltalake's own compaction takes a later number where
        that one is taken, even if there the same files have been merged already; all their rows are then there twice.)
        """
        with self._lock:
            if self._handle is None:
                return False
            files = polars.DataFrame(self._handle.get_add_actions(flatten=True))
            small = files.filter(polars.col("size_bytes") < _SMALL_BYTES)
            if small.height <= _MANY_FILES:
                return False
            version, now = self._handle.version() + 1, int(time.time() * 1000)
            actions: list[dict[str, Any]] = [{"commitInfo": {"timestamp": now, "operation": "OPTIMIZE"}}]
            written = []
            for (kind,), merged in small.group_by(f"partition.{PARTITION}", maintain_order=True):
                if merged.height > 1:
                    key, action = self._merge(str(kind), merged, version, now)
                    written.append(key)
                    actions += [_removal(str(kind), row, now) for row in merged.iter_rows(named=True)] + [action]
            entry = "\n".join(json.dumps(action) for action in actions).encode()
            if not self._store.create(f"{self._name}/_delta_log/{version:020}.json", entry):
                for key in written:
                    self._store.delete(key)
                return False
            self._handle.update_incremental()
            self._handle.create_checkpoint()
            return True

    def _merge(self, kind: str, files: polars.DataFrame, version: int, now: int) -> tuple[str, dict[str, Any]]:
        """Write the files' rows as one file; its key, and the log's line that adds it."""
        names = {unquote(path).rpartition("/")[2] for path in files["path"]}
        assert self._handle is not None
        places = [place for place in _places(self._handle, kind) if place.rpartition("/")[2] in names]
        assert len(places) == files.height
        rows = self._parquet(places).drop(PARTITION, strict=False)
        buffer = io.BytesIO()
        rows.write_parquet(buffer, compression="zstd")
        path = f"{PARTITION}={kind}/merged-{version:020}-{secrets.token_hex(8)}.parquet"
        key = f"{self._name}/{path}"
        self._store.put(key, buffer.getvalue())
        return key, {
            "add": {
                "path": path,
                "partitionValues": {PARTITION: kind},
                "size": buffer.tell(),
                "modificationTime": now,
                "dataChange": False,
                "stats": json.dumps({"numRecords": rows.height}),
            }
        }

    def _read(self, kind: str, table: DeltaTable, keep: bool) -> polars.DataFrame:
        active = frozenset(_places(table, kind))
        pieces = [(paths, rows) for paths, rows in self._pieces.get(kind, []) if paths <= active]
        missing = active.difference(*(paths for paths, _ in pieces))
        if missing:
            columns = [name for name in self._columns if name != PARTITION]
            pieces.append((missing, self._parquet(sorted(missing), columns)))
        if not pieces:
            return self._no_rows()
        rows = polars.concat([rows for _, rows in pieces])
        if keep:
            if len(pieces) > _MANY_PIECES:
                rows = rows.rechunk()
                pieces = [(active, rows)]
            self._pieces[kind] = pieces
        return rows

    def _parquet(self, places: list[str], columns: list[str] | None = None) -> polars.DataFrame:
        # Not DeltaTable.to_pyarrow_table, which makes the interpreter abort at exit now and then. Nor
        # polars.read_delta, which takes percent-encoded addresses for paths and finds nothing in "my photos".
        return polars.read_parquet(
            places, columns=columns, glob=False, hive_partitioning=False, storage_options=self._store.delta_options()
        )

    def _open(self, version: int | None = None) -> DeltaTable | None:
        if not self._store.exists(f"{self._name}/_delta_log/{0:020}.json"):
            return None  # asked first, because a directory's `delta_uri` makes the folder
        return DeltaTable(self._store.delta_uri(self._name), version, storage_options=self._store.delta_options())

    def _no_rows(self) -> polars.DataFrame:
        return polars.DataFrame(schema={name: type_ for name, type_ in self._columns.items() if name != PARTITION})


def _places(table: DeltaTable, kind: str) -> list[str]:
    """The addresses of a partition's files."""
    places = [unquote(address) for address in table.file_uris()]
    return [place for place in places if place.split("/")[-2] == f"{PARTITION}={kind}"]


def _removal(kind: str, file: dict[str, Any], now: int) -> dict[str, Any]:
    return {
        "remove": {
            "path": file["path"],
            "deletionTimestamp": now,
            "dataChange": False,
            "extendedFileMetadata": True,
            "partitionValues": {PARTITION: kind},
            "size": file["size_bytes"],
        }
    }
