"""7z archives, whole or in parts, unpacked once into a cache: they are solid, so a member costs all that is before it.

Each file appears under its name only when its CRC was right, so a run that was killed goes on with what is missing.
Nothing is written outside of the cache's folder: a member whose name could lead out of it, and every link, is left in
the archive and reported.
"""

import hashlib
import io
import json
import os
import re
import shutil
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from infra.errors import UserError, written_by_us
from infra.random_access import RandomAccess
from infra.s3_reading import S3Object, S3ReadError
from preprocessing.photos import Reason
from preprocessing.places import Place, PlaceError, holder_of, open_stream
from preprocessing.sources import Surroundings
from preprocessing.trees import DiskTree, Found, Tree, is_picture, unsafe

_MARK = "unpacked.json"
# LZMA makes thousands of bytes of one; photos, which are compressed already, do not shrink.
_MOST_RATIO, _RATIO_FROM_BYTES = 50, 1 << 28
_MOST_MEMBER_BYTES = 1 << 30
_PARTIAL = ".partial"


def find_parts(tree: Tree, name: str) -> list[Path | S3Object]:
    """`name`.7z, or `name`.7z.001 and the parts after it, beside it or in a folder of the archive's name; [] = none."""
    last = name.rpartition("/")[2]
    for place in (f"{name}.7z", f"{name}.7z/{last}.7z"):
        whole, parts = tree.find(place), list[Place]()
        while whole is None and (part := tree.find(f"{place}.{len(parts) + 1:03d}")) is not None:
            parts.append(part)
        found = [part for part in ([whole] if whole else parts) if isinstance(part, Path | S3Object)]
        if found:
            return found
    return []


def unpacked(parts: Sequence[Path | S3Object], around: Surroundings, title: str) -> Iterator[Found]:
    """The pictures of the archive, from the cache, into which they are unpacked unless they are there.

    A member that is refused comes too, with its problem. UserError where there is no cache, no room, or no whole
    archive.
    """
    if around.cache is None:
        raise UserError(
            f"{title} has to be unpacked, and there is no workspace for it: unpack it beside Anno/ yourself."
        )
    identity = _identity(parts)
    folder = around.cache / f"7z-{identity[:16]}"
    refused = _read_mark(folder)
    if refused is None:
        with written_by_us(folder, "choose another --workspace"):
            refused = _unpack(parts, folder, lambda done, total: around.tell(f"unpacking {title}", done, total), title)
    yield from DiskTree(folder / "files").walk()
    for number, (name, reason, detail) in enumerate(refused):
        yield Found(f"{name}#{number}", folder, (Reason(reason), detail))


def _identity(parts: Sequence[Path | S3Object]) -> str:
    marks = []
    for part in parts:
        holder = holder_of(part)
        stamp = holder.etag if isinstance(holder, S3Object) else str(holder.mtime_ns)
        marks.append([str(holder), holder.size, stamp])
    return hashlib.sha256(json.dumps(marks).encode("utf-8", "backslashreplace")).hexdigest()


def _read_mark(folder: Path) -> list[tuple[str, str, str]] | None:
    try:
        return [(name, reason, detail) for name, reason, detail in json.loads((folder / _MARK).read_text("utf-8"))]
    except (OSError, ValueError):
        return None


def _unpack(
    parts: Sequence[Path | S3Object], folder: Path, tell: Callable[[float, float], None], title: str
) -> list[tuple[str, str, str]]:
    """Write every sound member that is not there yet; (name, reason, detail) of the others."""
    import py7zr

    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(open_stream(part)) for part in parts]
            archive = stack.enter_context(py7zr.SevenZipFile(io.BufferedReader(_Joined(streams)), "r"))
            if archive.needs_password():
                raise ValueError("it is encrypted")
            members, refused = _sort_out(archive.files)
            total = sum(size for size, _ in members.values())
            missing = {name for name, (size, _) in members.items() if not _is_there(files / name, size)}
            done = total - sum(members[name][0] for name in missing)
            _check_room(folder, total, sum(holder_of(part).size for part in parts), total - done)
            tell(done, total)
            if missing:
                factory = _factory(files, {name: members[name] for name in missing}, done, total, tell)
                archive.extract(targets=missing, factory=factory)
    except UserError:
        raise
    except (PlaceError, S3ReadError) as error:
        raise UserError(f"{title} cannot be read ({error}): mend it, and give the same command again.") from error
    except OSError:  # the disk's, about which the caller knows
        raise
    except Exception as error:  # py7zr raises anything from lzma.LZMAError to IndexError on damaged archives
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{title} is damaged or not all there ({reason}): download its parts again.") from error
    if gone := [name for name, (size, _) in members.items() if not _is_there(files / name, size)]:
        raise UserError(f"{title} is damaged ({len(gone)} files did not come out of it): download its parts again.")
    part = folder / f"{_MARK}{_PARTIAL}"
    part.write_text(json.dumps(refused), "utf-8")
    os.replace(part, folder / _MARK)
    return refused


def _sort_out(entries: Any) -> tuple[dict[str, tuple[int, int]], list[tuple[str, str, str]]]:
    """name -> (bytes, CRC) of the pictures to unpack, and why others stay in the archive."""
    members, refused = dict[str, tuple[int, int]](), list[tuple[str, str, str]]()
    for entry in entries:
        name = str(entry.filename).encode("utf-8", "backslashreplace").decode()
        if entry.is_directory or not is_picture(name.replace("\\", "/").rpartition("/")[2]):
            continue
        size, crc = int(entry.uncompressed or 0), entry.crc32
        problem = unsafe(name)
        if problem is None and (entry.is_symlink or entry.is_junction or entry.is_socket):
            problem = (Reason.BAD_ARCHIVE, "a link")
        elif problem is None and (name in members or not all(map(_is_plain, name.split("/")))):
            problem = (Reason.BAD_ARCHIVE, "a name that is there once more, or cannot be a file's everywhere")
        elif problem is None and size > _MOST_MEMBER_BYTES:
            problem = (Reason.TOO_LARGE, f"{size} bytes")
        elif problem is None and size and crc is None:
            problem = (Reason.BAD_ARCHIVE, "it has no CRC")
        if problem:
            refused.append((name[:400], problem[0].value, problem[1]))
        else:
            members[name] = (size, crc or 0)
    return members, refused


def _is_plain(part: str) -> bool:
    return re.fullmatch(r"\w[\w .,()+@=~-]*", part) is not None and len(os.fsencode(part)) <= 200


def _check_room(folder: Path, total: int, packed: int, missing: int) -> None:
    if total > _RATIO_FROM_BYTES and total > _MOST_RATIO * packed:
        raise ValueError(f"{total} bytes packed into {packed} are no photos")
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(f'"{folder}" has room for {free} bytes of {missing}: choose a --workspace with more.')


def _is_there(path: Path, size: int) -> bool:
    try:
        return os.lstat(path).st_size == size
    except OSError:
        return False


def _factory(
    files: Path, members: dict[str, tuple[int, int]], done: int, total: int, tell: Callable[[float, float], None]
) -> Any:
    """py7zr's way of asking where to write; it is never given a path of its own choice."""
    from py7zr.io import Py7zIO, WriterFactory

    by_path = {str(Path(name)): name for name in members}

    class Writer(Py7zIO):
        def __init__(self, name: str | None) -> None:
            self._name, self._count, self._crc = name, 0, 0
            self._file: BinaryIO | None = None
            if name is not None:
                self._path = files / name
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._part = self._path.with_name(f".{self._path.name}{_PARTIAL}")
                self._file = open(self._part, "wb")

        def write(self, s: bytes | bytearray) -> int:
            if self._file is not None:
                self._file.write(s)
                self._count, self._crc = self._count + len(s), zlib.crc32(s, self._crc)
            return len(s)

        def close(self) -> None:
            nonlocal done
            if self._file is None or self._name is None:
                return
            self._file.close()
            self._file = None
            if (self._count, self._crc) == members[self._name]:
                os.replace(self._part, self._path)
            else:
                self._part.unlink()
            done += self._count
            tell(done, total)

        def read(self, size: int | None = None) -> bytes:
            return b""

        def seek(self, offset: int, whence: int = 0) -> int:
            return 0

        def flush(self) -> None:
            pass

        def size(self) -> int:
            return self._count

    class Factory(WriterFactory):
        def create(self, filename: str) -> Py7zIO:
            return Writer(by_path.get(filename))  # a name that was not asked for (a repeat, renamed) goes nowhere

    return Factory()


class _Joined(RandomAccess):
    """Parts of a file as one."""

    def __init__(self, streams: Sequence[BinaryIO]) -> None:
        self._streams, self._starts = streams, [0]
        for stream in streams:
            self._starts.append(self._starts[-1] + stream.seek(0, io.SEEK_END))
        super().__init__(self._starts[-1])

    def read_at(self, place: int, size: int) -> bytes:
        index = bisect_right(self._starts, place) - 1
        self._streams[index].seek(place - self._starts[index])
        return self._streams[index].read(min(size, self._starts[index + 1] - place))
