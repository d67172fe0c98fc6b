"""A release as a folder: its files and its manifest, there whole or not at all."""

import ctypes
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.errors import UserError, written_by_us
from infra.manifest import MANIFEST, MAX_BYTES, SIGNATURE, Manifest, ReleaseFile
from infra.release_cache import ReleaseCache
from infra.release_signatures import MAX_BYTES as MAX_SIGNATURE_BYTES

_HEADER_BYTES = 100_000_000  # safetensors refuses longer headers
_LITTER_SECONDS = 3600.0
_EXCHANGE, _HERE = 2, -100  # Linux's RENAME_EXCHANGE and AT_FDCWD


@contextmanager
def alone(cache: ReleaseCache, folder: Path, wait: bool) -> Iterator[None]:
    """Nobody else on this machine pulls into the folder meanwhile; who does is waited for, or UserError."""
    locks = cache.root / "locks"
    with written_by_us(locks, "set MOA_CACHE to another folder"):
        locks.mkdir(parents=True, exist_ok=True)
        lock = (locks / hashlib.sha256(str(folder).encode()).hexdigest()[:32]).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            raise UserError(f"Another pull into {folder} is under way: wait for it, or name another folder.") from error
        yield


def differs(folder: Path, manifest: Manifest, cache: ReleaseCache) -> str | None:
    """What keeps the folder from being exactly this release, in words; None where nothing does.

    Files that are the cache's own were verified there; others are read.
    """
    with (folder / MANIFEST).open("rb") as opened:
        if opened.read(MAX_BYTES + 1) != manifest.data:
            return "another release"
    for stranger in strangers(folder, manifest):
        return f"{stranger} beside it"
    for file in manifest.files:
        if not _is_file(folder / file.name, file, cache):
            return f"{file.name} in another state"
    return None


def strangers(folder: Path, manifest: Manifest) -> list[str]:
    """The files of the folder that the release does not have; a signature may lie beside it."""
    known = {MANIFEST, SIGNATURE, *(file.name for file in manifest.files)}
    found = []
    for where, _, names in os.walk(folder):
        relative = Path(where).relative_to(folder)
        found += [(relative / name).as_posix() for name in names]
    return sorted(name for name in found if name not in known)


def put_signature(folder: Path, signature: bytes) -> None:
    """Lay a signature beside the release that the folder holds, in the place of another."""
    target = folder / SIGNATURE
    with suppress(FileNotFoundError), target.open("rb") as file:
        if file.read(MAX_SIGNATURE_BYTES + 1) == signature:
            return
    partial = folder / f".{SIGNATURE}-{secrets.token_hex(4)}"
    try:
        partial.write_bytes(signature)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_folder(
    folder: Path, manifest: Manifest, cache: ReleaseCache, replace: bool, signature: bytes | None = None
) -> None:
    """Make the folder of files that are in the cache, and of a signature.

    replace: exchange it, in one step, with one that is there. Raises UserError where a file cannot be one of a release,
    and where somebody has put something there meanwhile; OSError where the file system refuses.
    """
    partial = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    try:
        for file in manifest.files:
            target = partial / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            _check_weights(cache.path(file.content), file.name)
            cache.place(file.content, target)
        (partial / MANIFEST).write_bytes(manifest.data)
        if signature is not None:
            put_signature(partial, signature)
        if replace:
            _exchange(partial, folder)
        else:
            _rename(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_file(path: Path, file: ReleaseFile, cache: ReleaseCache) -> bool:
    try:
        status = path.lstat()
        if path.is_symlink() or not path.is_file() or status.st_size != file.content.size:
            return False
        own = cache.path(file.content)
        if own.exists() and own.stat().st_ino == status.st_ino and own.stat().st_dev == status.st_dev:
            return cache.has(file.content)
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.content.sha256
    except FileNotFoundError:
        return False


def _check_weights(path: Path, name: str) -> None:
    """A safetensors file begins with the length of its header: one that no reader should believe is refused."""
    if not name.endswith(".safetensors"):
        return
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
    if not 2 <= header <= min(size - 8, _HEADER_BYTES):
        raise UserError(f"{name} is no safetensors file: it says that its header has {header:,} bytes.")


def _rename(partial: Path, folder: Path) -> None:
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UserError(f"{folder} was filled by somebody else meanwhile: name another folder to pull into.") from error


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders' names in one step."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None or rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        reason = os.strerror(ctypes.get_errno()) if rename else "the system has no renameat2"
        raise UserError(f"{other} cannot be exchanged in one step ({reason}): pull into a new folder.")


def _sweep(folder: Path) -> None:
    """Remove what a killed pull into the folder left beside it."""
    for path in folder.parent.glob(f".{folder.name}.partial-????????"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _LITTER_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
