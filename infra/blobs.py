"""Files under their digest: described, and put into a store where they are not there yet."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.large_objects import large_objects
from infra.manifest import PART_BYTES, Content, blob_key
from infra.steady_file import steady
from infra.storage import ObjectStore

# What nobody needs is deleted when it is this old; a publisher relies on what is half as old at most.
GARBAGE_SECONDS = 24 * 3600.0
_AT_ONCE = 8
_BLOCK = 1 << 20  # small enough for the processor's own memory
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""


def describe(contents: Mapping[str, bytes | Path]) -> dict[str, Content]:
    """Name → what the bytes or the file of that name are."""
    return {
        name: describe_file(one) if isinstance(one, Path) else describe_bytes(one) for name, one in contents.items()
    }


def describe_bytes(data: bytes) -> Content:
    """What these bytes are."""
    view = memoryview(data)
    parts = [_sha256(view[start : start + PART_BYTES]) for start in range(0, len(data), PART_BYTES)]
    return Content(len(data), _sha256(view), tuple(parts) if len(parts) > 1 else ())


def describe_file(path: Path) -> Content:
    """What the file's bytes are. UserError where they change meanwhile."""
    with steady(path) as file, ThreadPoolExecutor(1) as pool:
        parts = pool.submit(_part_digests, path)  # beside the whole's, from the same pages in memory
        whole = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
        digests = parts.result()
        return Content(size, whole, digests if len(digests) > 1 else ())


def _part_digests(path: Path) -> tuple[str, ...]:
    digests: list[str] = []
    buffer = memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while True:
            digest, left = hashlib.sha256(), PART_BYTES
            while left and (came := file.readinto(buffer[:left])):
                digest.update(buffer[:came])
                left -= came
            if left == PART_BYTES:
                return tuple(digests)
            digests.append(digest.hexdigest())


def ensure_blobs(
    store: ObjectStore,
    wanted: Iterable[tuple[Content, bytes | Path]],
    needed: Collection[str],
    progress: Progress = silent,
) -> None:
    """Put into the store what is not there with its size.

    needed: the digests that a release needs, which nobody deletes. Another one that is there already, as a killed
    publisher leaves it, counts only while it is young: `gc` may be about to take it.
    """
    large, wanted = large_objects(store), list(wanted)
    now = large.clock()
    done, total = 0, sum(content.size for content, _ in wanted)

    def missing(one: tuple[Content, bytes | Path]) -> bool:
        there = large.find(blob_key(one[0].sha256))
        if there is None or there.size != one[0].size:
            return True
        return one[0].sha256 not in needed and now - there.written > GARBAGE_SECONDS / 2

    def advance(size: int) -> None:
        nonlocal done
        done += size
        progress(done, total)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for one, is_missing in zip(wanted, pool.map(missing, wanted), strict=True):
            content, source = one
            key = blob_key(content.sha256)
            if not is_missing:
                advance(content.size)
            elif isinstance(source, Path):
                large.upload(key, source, content, advance)
            else:
                store.put(key, source)
                advance(content.size)


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
