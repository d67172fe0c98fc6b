"""Files of releases on this machine, each fetched once: below `MOA_CACHE` or ~/.cache/moa, under their SHA-256.

    releases/blobs/ab/abcd…        whole and verified; abcd….json says what the file looked like when it was
    releases/partial/abcd…         what is being fetched. Killed and begun again, each part that has its digest is kept
    releases/known/                what registries were last heard to hold (`infra.known_releases`)

Folders of pulled releases share the files' disk space (a clone or a hard link) where the file system can. What no
folder uses goes, longest unused first, when it is over `MOA_CACHE_GB` (50) or the disk is full. All of it may be
deleted at any time.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from infra.errors import UserError
from infra.large_objects import LargeObjects, UnreadableObject
from infra.manifest import PART_BYTES, Content, part_spans

CACHE, CACHE_GB = "MOA_CACHE", "MOA_CACHE_GB"
_GB = 50.0
_AT_ONCE = 8  # parts in memory, and requests to the store
_TRIES = 3  # at what comes wrong
_CLONE = 0x40049409  # Linux's FICLONE: a copy that shares its disk space
_LEFT_FREE = 64 * 2**20
_buffers = threading.local()
Fetched = Callable[[int], None]


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: where it is, what it must be, and its address for people."""

    key: str
    content: Content
    address: str


class ReleaseCache:
    """The files that this machine has."""

    def __init__(self, root: Path | None = None) -> None:
        base = Path(os.environ.get(CACHE) or "~/.cache/moa").expanduser().absolute()
        self.root = (root or base) / "releases"

    def has(self, content: Content) -> bool:
        """Whether the file is there. One that was touched since it was verified, or lived through a crash of the
        machine, is read again first, and deleted if it is not what it was."""
        path = self.path(content)
        try:
            now = _look(path)
        except FileNotFoundError:
            return False
        note = path.with_name(f"{path.name}.json")
        with suppress(OSError, ValueError):
            if json.loads(note.read_bytes()) == now and now["size"] == content.size:
                os.utime(note)  # used now
                return True
        if now["size"] == content.size and _sha256_of(path) == content.sha256:
            note.write_text(json.dumps(now))
            return True
        path.unlink(missing_ok=True)
        return False

    def path(self, content: Content) -> Path:
        """Where the file is, or would be."""
        return self.root / "blobs" / content.sha256[:2] / content.sha256

    def fetch(self, large: LargeObjects, wanted: Iterable[Wanted], fetched: Fetched) -> None:
        """Bring what is not here yet, by parts, some at a time, and keep what is; `fetched` hears of bytes that come.

        A file is checked before it has its name; of one that is wrong, the wrong parts are fetched again. Of two
        processes that want a file, one fetches it. Raises UserError where a file is missing or damaged, and where the
        disk is full.
        """
        with self._written(), ExitStack() as stack:
            missing: list[tuple[Wanted, int]] = []
            distinct = {one.content.sha256: one for one in wanted}
            for one in sorted(distinct.values(), key=lambda one: one.content.sha256):
                descriptor = self._claim(one.content)
                if descriptor is not None:
                    stack.callback(os.close, descriptor)
                    missing.append((one, descriptor))
            self._make_room(sum(one.content.size - os.fstat(file).st_blocks * 512 for one, file in missing), distinct)
            missing.sort(key=lambda pair: -pair[0].content.size)
            pool = stack.enter_context(_pool())
            parts = [(one, file, _submit(pool, large, one, file)) for one, file in missing]
            for one, file, futures in parts:
                whole = _digest(one, file, futures, fetched)
                for _ in range(_TRIES - 1):
                    if whole != one.content.sha256 and (one.content.parts or len(futures) == 1):
                        whole = _digest(one, file, _submit(pool, large, one, file), lambda size: None)
                self._finish(one, file, whole)

    def place(self, content: Content, target: Path) -> None:
        """Put the file, which is here, at `target`: a clone, a hard link, else a copy."""
        source = self.path(content)
        with source.open("rb") as old:
            try:
                with target.open("xb") as new:
                    fcntl.ioctl(new.fileno(), _CLONE, old.fileno())
                return
            except OSError:
                target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(source, target)

    def _claim(self, content: Content) -> int | None:
        """The file into which to fetch, this process's alone until it is closed; None where there is nothing to do."""
        partial = self.root / "partial" / content.sha256
        partial.parent.mkdir(parents=True, exist_ok=True)
        while not self.has(content):
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # the system lets it go with the process
                with suppress(FileNotFoundError):  # else whoever had it has moved it to its place
                    if os.stat(partial).st_ino == os.fstat(descriptor).st_ino:
                        return descriptor
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        return None

    def _finish(self, one: Wanted, file: int, whole: str) -> None:
        """Give the file its name if that is its digest."""
        content, path = one.content, self.path(one.content)
        partial = self.root / "partial" / content.sha256
        if whole != content.sha256:
            partial.unlink(missing_ok=True)
            raise _damaged(one, "is not what was published")
        os.ftruncate(file, content.size)
        os.fchmod(file, 0o444)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, path)
        path.with_name(f"{path.name}.json").write_text(json.dumps(_look(path)))

    def _make_room(self, size: int, keep: Container[str]) -> None:
        """Remove what no folder uses, longest unused first, until so many more bytes fit; never what is to be kept."""
        most = float(os.environ.get(CACHE_GB) or _GB) * 1e9
        unused = []
        for path in (self.root / "blobs").glob("*/*.json"):
            with suppress(FileNotFoundError):
                status = path.with_suffix("").stat()
                if status.st_nlink == 1 and path.stem not in keep:
                    unused.append((path.stat().st_mtime_ns, status.st_size, path))
        held = sum(bytes_ for _, bytes_, _ in unused)
        for _, bytes_, path in sorted(unused):
            if held + size <= most and size + _LEFT_FREE <= shutil.disk_usage(self.root).free:
                return
            path.with_suffix("").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            held -= bytes_
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise UserError(
                f"There are {size / 1e9:.2f} GB to fetch and {free / 1e9:.2f} GB free in {self.root}: make room there, "
                f"or set {CACHE} to a folder on another disk."
            )

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise UserError(
                f"{self.root} cannot be written ({error.strerror or error}): make room there, or set {CACHE} to "
                "another folder; what has come is kept, and the same command goes on from there."
            ) from error


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """Threads whose waiting work is dropped when the block fails."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ThreadPoolExecutor, large: LargeObjects, one: Wanted, file: int) -> list[Future[None]]:
    """Have the parts fetched that the file does not hold already, by their digests; all, where these are not known."""
    content = one.content
    spans = part_spans(content.size)
    begun = os.fstat(file).st_size > 0
    digests: Sequence[str] = (content.parts or [content.sha256]) if begun else []
    if len(digests) != len(spans):
        digests = [""] * len(spans)
    return [
        pool.submit(_fetch_part, large, one, file, start, size, digest)
        for (start, size), digest in zip(spans, digests, strict=True)
    ]


def _fetch_part(large: LargeObjects, one: Wanted, file: int, start: int, size: int, there: str) -> None:
    """Put a part into the file, unless what it holds there has the digest `there`."""
    buffer = _buffer(size)
    if there and os.preadv(file, [buffer], start) == size and hashlib.sha256(buffer).hexdigest() == there:
        return
    try:
        if size:
            large.read_into(one.key, start, buffer, one.content.size)
    except KeyError as error:
        raise _damaged(one, "is missing") from error
    except UnreadableObject as error:
        raise _damaged(one, f"cannot be read: {error}") from error
    while buffer:
        written = os.pwrite(file, buffer, start)
        buffer, start = buffer[written:], start + written


def _digest(one: Wanted, file: int, futures: Sequence[Future[None]], fetched: Fetched) -> str:
    """The SHA-256 of the file, whose parts are still coming."""
    whole = hashlib.sha256()
    for (start, size), future in zip(part_spans(one.content.size), futures, strict=True):
        future.result()
        buffer = _buffer(size)
        os.preadv(file, [buffer], start)
        whole.update(buffer)
        fetched(size)
    return whole.hexdigest()


def _buffer(size: int) -> memoryview:
    """This thread's own, for as long as it is not asked again: making one of that size takes as long as to fill it."""
    if not hasattr(_buffers, "own"):
        _buffers.own = bytearray(PART_BYTES)
    return memoryview(_buffers.own)[:size]


def _damaged(one: Wanted, how: str) -> UserError:
    return UserError(f"The release is damaged: {one.address} {how}; moa releases verify says what else is.")


def _look(path: Path) -> dict[str, object]:
    """What a file looks like from outside: it is not read again while this and the machine's uptime last."""
    status = path.stat()
    about = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
    return about | {"boot": _boot()}


@lru_cache(maxsize=1)
def _boot() -> str:
    """Names the time since the machine was started: what was written may be lost in a crash, name and size kept."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
