"""New objects of a folder or an S3 prefix, noticed in bounded memory and told once, whatever is restarted meanwhile.

Names are not kept. Each falls by its hash into one of 4,096 buckets, and of a bucket two numbers are kept: how many
names it has, and the sum of their hashes. Two looks are compared bucket by bucket, in any order of listing: where a
bucket has more names than before, so many came; where it has as many but another sum, somebody exchanged at least one.
So the state is 64 KiB for ten photos or ten million. What is lost is small: of names that come and go in one bucket at
the same time only the difference is counted, and at least one.

    came ── quiet for so long, or waited for so long ──► a batch with a name ── told ──► known
"""

import hashlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from infra.errors import UserError
from infra.s3_reading import list_objects

BUCKETS = 4096
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Look:
    """What one listing came to: names and hashes by bucket, and all bytes."""

    counts: array  # type: ignore[type-arg]
    sums: array  # type: ignore[type-arg]
    size: int

    @property
    def total(self) -> int:
        """How many names there are."""
        return sum(self.counts)

    def new_since(self, before: "Look") -> int:
        """How many names came."""
        pairs = zip(self.counts, before.counts, self.sums, before.sums, strict=True)
        return sum(max(count - old, 0) or int(count == old and total != older) for count, old, total, older in pairs)

    def packed(self) -> bytes:
        """For a small table's row."""
        return self.size.to_bytes(8, "little") + self.counts.tobytes() + self.sums.tobytes()


NOTHING = Look(array("Q", bytes(8 * BUCKETS)), array("Q", bytes(8 * BUCKETS)), 0)


def unpacked(data: bytes) -> Look:
    """`Look.packed` back."""
    size, counts, sums = int.from_bytes(data[:8], "little"), array("Q"), array("Q")
    counts.frombytes(data[8 : 8 + 8 * BUCKETS])
    sums.frombytes(data[8 + 8 * BUCKETS :])
    return Look(counts, sums, size)


def look(names: Iterable[tuple[str, int]]) -> Look:
    """Go through a listing of (name, bytes) once."""
    counts, sums, size = array("Q", bytes(8 * BUCKETS)), array("Q", bytes(8 * BUCKETS)), 0
    for name, length in names:
        value = int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest())
        bucket = value % BUCKETS
        counts[bucket] += 1
        sums[bucket] = (sums[bucket] + value) & _MASK
        size += length
    return Look(counts, sums, size)


def listing(place: str, endpoint_url: str | None = None) -> Iterator[tuple[str, int]]:
    """(name, bytes) of all under a folder, an archive or s3://bucket/prefix, in no order; hidden ones are left out.

    A folder that is not there yet is empty. UserError where the bucket cannot be listed.
    """
    if place.startswith("s3://"):
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        for one in list_objects(bucket, prefix, endpoint_url):
            if not one.key.endswith("/") and not one.key.rpartition("/")[2].startswith("."):
                yield one.key, one.size
    elif os.path.isfile(place):
        yield place, os.path.getsize(place)
    else:
        yield from _files(place)


def _files(folder: str) -> Iterator[tuple[str, int]]:
    waiting = [folder]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except FileNotFoundError:
            continue  # not there yet, or gone meanwhile
        except OSError as error:
            raise UserError(
                f'"{error.filename}" cannot be listed ({error.strerror}): let moa watch read it.'
            ) from error
        with entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue  # half-written, by the habit of those who copy
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                try:
                    yield entry.path, entry.stat().st_size
                except OSError:
                    continue  # gone meanwhile, or a link to nothing


@dataclass(frozen=True)
class Batch:
    """New objects that are to be told: `count` and `bytes` of them, noticed from `began` to `ended` [Unix seconds]."""

    name: str
    count: int
    bytes: int
    began: float
    ended: float
    total: int


class Arrivals:
    """What is known of one place, in a small SQLite file that outlives its process."""

    def __init__(self, path: Path, quiet_seconds: float, longest_wait_seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._quiet, self._longest = quiet_seconds, longest_wait_seconds
        self._path = path
        with closing(self._open()) as table, table:
            table.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value BLOB)")

    def due(self, now: float, found: Look) -> Batch | None:
        """Take note of a look at `now` [Unix seconds]; the batch that is to be told, the same one until `told`."""
        if waiting := self.untold():
            return waiting
        known, last = self._look("known"), self._look("last")
        times = json.loads(self._get("times") or b"{}")
        count = found.new_since(known)
        if not count:
            # Gone names are forgotten, so that they count where they come again.
            self._put(known=found.packed(), last=found.packed(), times=b"{}")
            return None
        if found != last or "came" not in times:
            times = {"began": times.get("began", now), "came": now}
        if now - times["came"] < self._quiet and now - times["began"] < self._longest:
            self._put(last=found.packed(), times=json.dumps(times).encode())
            return None
        size = max(found.size - known.size, 0)
        batch = Batch(uuid4().hex, count, size, times["began"], now, found.total)
        # In one transaction: a batch has its name before anybody hears of it, and with it what is known afterwards.
        self._put(last=found.packed(), batch=json.dumps(batch.__dict__).encode(), next=found.packed(), times=b"{}")
        return batch

    def untold(self) -> Batch | None:
        """The batch of which nobody has been told for certain."""
        kept = self._get("batch")
        return Batch(**json.loads(kept)) if kept else None

    def told(self, batch: Batch) -> None:
        """It was: what it held is known from now on."""
        kept = self.untold()
        assert kept is not None and kept.name == batch.name, "another batch was told"
        self._put(known=self._get("next") or b"", batch=b"", next=b"")

    def _look(self, name: str) -> Look:
        kept = self._get(name)
        return unpacked(kept) if kept else NOTHING

    def _get(self, name: str) -> bytes | None:
        with closing(self._open()) as table:
            row = table.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row and row[0] else None

    def _put(self, **values: bytes) -> None:
        with closing(self._open()) as table, table:
            table.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(values.items()))

    def _open(self) -> sqlite3.Connection:
        table = sqlite3.connect(self._path, timeout=30)
        table.execute("PRAGMA synchronous = FULL")
        return table
