"""Several finished shards in one transaction: what a commit costs is shared, what a crash costs is bounded."""

import threading
import time
from collections.abc import Sequence
from types import TracebackType

from preprocessing.catalog import Catalog, PhotoRow, ShardRow

# A crash costs what is not committed yet: at most the work of so many seconds, and at most so many shards.
SECONDS = 5.0
SHARDS = 512


class CommitBuffer:
    """Collects rows and commits them at `SHARDS` shards, `SECONDS` after the first of them, and at the end.

    Rows are committed in the order in which they were added, so what a crash leaves is a beginning of them. Use as a
    context manager: what was added is committed on the way out of an error, too, for it is finished work.
    """

    def __init__(self, catalog: Catalog, seconds: float = SECONDS, shards: int = SHARDS) -> None:
        self._catalog, self._seconds, self._limit = catalog, seconds, shards
        self._shards: list[ShardRow] = []
        self._photos: list[PhotoRow] = []
        self._additions = 0
        self._lock = threading.Lock()  # of the rows
        self._turn = threading.Lock()  # of the commits: one after another, or their order would be lost
        self._timer: threading.Timer | None = None
        self._failure: BaseException | None = None
        self.commits, self.commit_seconds = 0, 0.0

    def __enter__(self) -> "CommitBuffer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self.flush()
        except Exception:
            if kind is None:  # else the first error is the one to see
                raise

    def add(self, shards: Sequence[ShardRow], photos: Sequence[PhotoRow]) -> None:
        """Rows that belong together: they are committed in one transaction. Raises what a commit in between raised."""
        with self._lock:
            self._shards += shards
            self._photos += photos
            self._additions += 1
            full = self._additions >= self._limit
            if self._timer is None:
                # A clock of its own: the next shard may take minutes.
                self._timer = threading.Timer(self._seconds, self._on_time)
                self._timer.daemon = True
                self._timer.start()
        self._raise()
        if full:
            self.flush()

    def flush(self) -> None:
        """Commit what there is now."""
        with self._turn:
            with self._lock:
                shards, photos = self._shards, self._photos
                self._shards, self._photos, self._additions = [], [], 0
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            if shards or photos:
                started = time.monotonic()
                self._catalog.commit(shards, photos)
                self.commits, self.commit_seconds = self.commits + 1, self.commit_seconds + time.monotonic() - started
        self._raise()

    def _on_time(self) -> None:
        try:
            self.flush()
        except BaseException as error:
            self._failure = error

    def _raise(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
