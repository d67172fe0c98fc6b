"""Where a photo's bytes lie: in a file, in a piece of a tar, in a member of a zip, or on S3 as any of these.

A place is small and travels between processes; whoever gets one reads it anew, and is told where what is there is no
longer what was listed. Nothing is unpacked to a disk, and no size that an archive claims is taken for granted.
"""

import io
import os
import stat
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from infra.s3_reading import S3Object, S3ReadError, S3Stream, read_object

# Deflate makes at most 1,032 bytes of one. Photos are compressed already: beyond these it is no photo but a bomb.
_MOST_RATIO, _RATIO_FROM_BYTES = 200, 16 << 20
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # of a zip's member: signature, 8 fields, length of name and of extra
_SLACK = 128  # bytes by which a local header may be longer than the directory says, without a second read
STORED, DEFLATED = 0, 8


class PlaceError(OSError):
    """What is there cannot be had. `reason` is the value of a `photos.Reason`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class StampedFile:
    """An archive on disk as it was when its members were listed."""

    path: Path
    size: int
    mtime_ns: int

    def __str__(self) -> str:
        return str(self.path)


Holder = StampedFile | S3Object


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [start, start + size) of an archive: a member of a tar."""

    holder: Holder
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A member of a zip, as its central directory describes it; `header` is where its local header begins."""

    holder: Holder
    header: int
    header_size: int
    packed: int
    size: int
    method: int
    crc: int


Place = Path | S3Object | Span | ZipMember


def read_place(place: S3Object | Span | ZipMember, most_bytes: int) -> bytes:
    """All bytes of the place; PlaceError where they are gone, changed, damaged or more than `most_bytes`."""
    if place.size > most_bytes:
        raise PlaceError("too_large", f"{place.size} bytes")
    if isinstance(place, S3Object):
        return _read(place, 0, place.size)
    if isinstance(place, Span):
        return _read(place.holder, place.start, place.size)
    return _inflate(place, most_bytes)


def is_readable(place: Place) -> bool:
    """Whether it is worth another try; for an object on S3 the try itself has to tell."""
    if isinstance(place, Span | ZipMember):
        return is_readable(place.holder.path if isinstance(place.holder, StampedFile) else place.holder)
    return isinstance(place, S3Object) or os.access(place, os.R_OK)


def is_remote(place: Place) -> bool:
    """Whether its bytes lie on an object store."""
    return isinstance(place.holder if isinstance(place, Span | ZipMember) else place, S3Object)


def holder_of(place: Path | S3Object) -> Holder:
    """The archive at `place` with the marks by which a later change is noticed; OSError where it is not there."""
    if isinstance(place, S3Object):
        return place
    status = os.stat(place)
    return StampedFile(place, status.st_size, status.st_mtime_ns)


def open_stream(place: Place) -> BinaryIO:
    """A seekable stream of a list or an archive; OSError or PlaceError where there is none. Pipes are never opened."""
    if isinstance(place, S3Object):
        return io.BufferedReader(S3Stream(place), 1 << 20)
    if isinstance(place, Span | ZipMember):
        return io.BytesIO(read_place(place, 1 << 30))
    return _open_regular(place)


def _open_regular(path: Path) -> BinaryIO:
    # The file may be swapped for a pipe after a check: without O_NONBLOCK, opening one waits for a writer.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def _read(holder: Holder, start: int, size: int) -> bytes:
    if not 0 <= start <= start + size <= holder.size:
        raise PlaceError("bad_archive", f"bytes {start} to {start + size} of an archive of {holder.size}")
    if isinstance(holder, S3Object):
        try:
            return read_object(holder, start, size)
        except S3ReadError as error:
            reason = {"missing": "missing_file", "changed": "changed"}.get(error.kind, "unreadable")
            raise PlaceError(reason, error.detail) from error
    try:
        with _open_regular(holder.path) as file:
            status = os.fstat(file.fileno())
            if (status.st_size, status.st_mtime_ns) != (holder.size, holder.mtime_ns):
                raise PlaceError("changed", f"{holder.path.name} is not the file that was listed")
            file.seek(start)
            data = file.read(size)
            status = os.fstat(file.fileno())
    except PlaceError:
        raise
    except FileNotFoundError as error:
        raise PlaceError("missing_file", f"{holder.path.name} is not there") from error
    except OSError as error:
        raise PlaceError("unreadable", f"{holder.path.name}: {error.strerror or error}") from error
    if (status.st_size, status.st_mtime_ns) != (holder.size, holder.mtime_ns):
        raise PlaceError("changed", f"{holder.path.name} changed while it was read")
    if len(data) != size:
        raise PlaceError("truncated", f"{holder.path.name} ends {size - len(data)} bytes too early")
    return data


def _inflate(member: ZipMember, most_bytes: int) -> bytes:
    """A zip's member. Its local header is believed in one thing only: how long it is."""
    if member.size > _RATIO_FROM_BYTES and member.size > _MOST_RATIO * max(member.packed, 1):
        raise PlaceError("too_large", f"{member.size} bytes packed into {member.packed}: no photo")
    end = member.holder.size
    got = _read(member.holder, member.header, min(member.header_size + member.packed + _SLACK, end - member.header))
    if len(got) < _LOCAL_HEADER.size or not got.startswith(b"PK\x03\x04"):
        raise PlaceError("bad_archive", "no local header where the zip's directory says")
    name_size, extra_size = _LOCAL_HEADER.unpack_from(got)[-2:]
    start = _LOCAL_HEADER.size + name_size + extra_size
    if member.header + start + member.packed > end:
        raise PlaceError("bad_archive", "the member reaches beyond the zip's end")
    packed = got[start : start + member.packed]
    if len(packed) < member.packed:
        packed = _read(member.holder, member.header + start, member.packed)
    data = packed
    if member.method == DEFLATED:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = stream.decompress(packed, min(member.size, most_bytes) + 1)
        except zlib.error as error:
            raise PlaceError("truncated", f"its deflated data are damaged ({error})") from error
    if len(data) != member.size:
        more = "more than" if len(data) > member.size else f"{len(data)} of"
        raise PlaceError("size_mismatch", f"{more} the {member.size} bytes that the zip's directory says")
    if zlib.crc32(data) != member.crc:
        raise PlaceError("checksum_mismatch", f"CRC {zlib.crc32(data):08x}, listed with {member.crc:08x}")
    return data
