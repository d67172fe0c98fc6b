"""Objects of a store as local files, each fetched once per machine: what several training workers read from.

A cached file is named by the SHA-256 of its bytes and appears whole and verified or not at all; a process verifies it
when it first uses it, and fetches it anew where this disk has damaged it. When the folder is over its bound, what was
used longest ago goes; whoever has such a file mapped keeps it until it is closed. An object of a directory is no copy:
its own file is verified once a process and read in place.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.errors import DamagedObject, UserError
from infra.storage import DirectoryStore, ObjectStore, check_key

_PIECE = 1 << 22


class ShardCache:
    """`path(key, sha256)`: a local file with exactly the bytes of an object."""

    def __init__(self, store: ObjectStore, folder: Path, max_bytes: int) -> None:
        """folder: of this machine, shared by its processes. max_bytes: of all files in it, but never less than one."""
        self.store, self.folder, self.max_bytes = store, Path(folder), max_bytes
        self._verified: set[str] = set()

    @property
    def in_place(self) -> bool:
        """Whether objects are read where they are, and there is nothing to fetch ahead."""
        return isinstance(self.store, DirectoryStore)

    def path(self, key: str, sha256: str) -> Path:
        """Fetched where it is not there yet, and verified once. DamagedObject where the object is missing or has other
        bytes, UserError where it cannot be kept."""
        if isinstance(self.store, DirectoryStore):
            path = self.store.root / check_key(key)
            if sha256 not in self._verified:
                self._check(key, sha256, self._digest_in_place(path, key))
                self._verified.add(sha256)
            return path
        path = self.folder / sha256
        self.folder.mkdir(parents=True, exist_ok=True)
        while not _touched(path) or not self._intact(path, sha256):
            with self._alone(sha256):
                if not path.exists():
                    self._fetch(key, sha256, path)
        return path

    def distrust(self, sha256: str) -> None:
        """Its bytes are not what they were: `path` is to verify them again."""
        self._verified.discard(sha256)

    def _intact(self, path: Path, sha256: str) -> bool:
        """Whether a cached file still has its bytes; one that has not is removed."""
        if sha256 in self._verified:
            return True
        with suppress(OSError):  # another process took it away, or the disk cannot read it
            if _digest_of(path) == sha256:
                self._verified.add(sha256)
                return True
        path.unlink(missing_ok=True)
        return False

    def _fetch(self, key: str, sha256: str, path: Path) -> None:
        try:
            data = self.store.get(key)
        except KeyError as error:
            raise _missing(key, self.store) from error
        self._check(key, sha256, hashlib.sha256(data).hexdigest())
        self._make_room(len(data))
        partial = path.with_name(f".{sha256}-{secrets.token_hex(4)}")
        try:
            partial.write_bytes(data)
            os.replace(partial, path)
            self._verified.add(sha256)
        except OSError as error:
            raise UserError(
                f"The shard {key} cannot be kept in {self.folder} ({error.strerror}): make room there, "
                "or choose another --workspace."
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def _check(self, key: str, sha256: str, found: str) -> None:
        if found != sha256:
            raise DamagedObject(
                f"{self.store.uri(key)} is damaged: its SHA-256 begins {found[:12]}, the catalog says {sha256[:12]}; "
                'put it back, or leave its photos out with train.damaged_shards = "skip".',
                key,
            )

    def _digest_in_place(self, path: Path, key: str) -> str:
        try:
            return _digest_of(path)
        except FileNotFoundError as error:
            raise _missing(key, self.store) from error

    def _make_room(self, size: int) -> None:
        """Remove what was used longest ago until so many more bytes fit."""
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if not path.name.endswith(".lock"):
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
        total = size + sum(file[1] for file in files)
        for _, bytes_, path in sorted(files):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= bytes_

    @contextmanager
    def _alone(self, sha256: str) -> Iterator[None]:
        """Of this machine's processes, one fetches an object; the system lets the lock go with its process."""
        with (self.folder / f"{sha256[:2]}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _touched(path: Path) -> bool:
    """Whether it is there; if so it was used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _digest_of(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            hashed.update(piece)
    return hashed.hexdigest()


def _missing(key: str, store: ObjectStore) -> DamagedObject:
    return DamagedObject(
        f"{store.uri(key)} is gone, though the catalog names it: put it back, or leave its photos out with "
        'train.damaged_shards = "skip".',
        key,
    )
