"""The members of a zip by its central directory, read in place: no path of it is ever opened or written.

Our own reader, because the standard one keeps an object of half a kilobyte per member and follows whatever the
directory says; CelebA's zip has 202,599 members and a hostile one a million. Format: APPNOTE.TXT 6.3.10, 4.3.
"""

import stat
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from infra.errors import UserError
from preprocessing.places import DEFLATED, STORED, Holder, ZipMember

_END, _END64_LOCATOR, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sIQI"), struct.Struct("<4sQ2H2I4Q")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL_SIZE = 30
_UTF8, _ENCRYPTED = 0x800, 0x1
_BLOCK = 1 << 20
# CelebA's directory is 20 MB. One that is larger than this describes more members than anybody's photos.
_MOST_DIRECTORY_BYTES = 1 << 27


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A name in a zip with its member; problem: a sentence where it is not one that is read here, "" otherwise."""

    name: str
    member: ZipMember
    problem: str = ""


def zip_entries(file: BinaryIO, holder: Holder) -> Iterator[ZipEntry]:
    """Every file's entry in the directory's order; folders are passed over. UserError where it is no zip.

    A second entry of a name and entries whose bytes overlap (which is how a small zip holds petabytes) have a problem.
    Names are given as they stand: whoever joins them to anything must check them.
    """
    try:
        yield from _flag_overlaps(list(_read_directory(file, holder)), holder.size)
    except (struct.error, ValueError, OverflowError) as error:
        raise UserError(f'"{holder}" cannot be read as a zip ({error}): download it again.') from error


def _read_directory(file: BinaryIO, holder: Holder) -> Iterator[ZipEntry]:
    start, size, shift = _find_directory(file, holder.size)
    if size > _MOST_DIRECTORY_BYTES:
        raise ValueError(f"its directory claims {size} bytes")
    if not 0 <= start <= start + size <= holder.size:
        raise ValueError("its directory lies outside of it")
    file.seek(start)
    names = set[bytes]()
    rest, left = b"", size
    while left or rest:
        block = file.read(min(_BLOCK, left))
        left -= len(block)
        rest += block
        if left and not block:
            raise ValueError("it ends within its directory")
        place = 0
        while place + _ENTRY.size <= len(rest):
            fields = _ENTRY.unpack_from(rest, place)
            length = _ENTRY.size + sum(fields[10:13])
            if fields[0] != b"PK\x01\x02":
                raise ValueError(f"its directory is damaged after {len(names)} members")
            if place + length > len(rest):
                break
            entry = _entry(rest[place : place + length], fields, holder, shift, names)
            if entry is not None:
                yield entry
            place += length
        rest = rest[place:]
        if not left and rest:
            raise ValueError(f"its directory is damaged after {len(names)} members")


def _entry(data: bytes, fields: tuple, holder: Holder, shift: int, names: set[bytes]) -> ZipEntry | None:
    _, _, _, flags, method, _, _, crc, packed, size, name_size, extra_size, _, _, _, attributes, header = fields
    raw = data[_ENTRY.size : _ENTRY.size + name_size]
    name = raw.decode("utf-8" if flags & _UTF8 else "cp437", "backslashreplace")
    if name.endswith("/") and not size:
        return None
    extra = data[_ENTRY.size + name_size : _ENTRY.size + name_size + extra_size]
    size, packed, header = _wide(extra, size, packed, header)
    header_size = _LOCAL_SIZE + name_size + extra_size
    member = ZipMember(holder, header + shift, header_size, packed, size, method, crc)
    kind = stat.S_IFMT(attributes >> 16)
    problem = ""
    if raw in names:
        problem = "the zip holds this name once more"
    elif kind not in (0, stat.S_IFREG):
        problem = "a link, a device or a pipe"
    elif flags & _ENCRYPTED:
        problem = "encrypted"
    elif method not in (STORED, DEFLATED):
        problem = f"packed by method {method}; only stored and deflated members are read"
    elif method == STORED and packed != size:
        problem = f"stored as {packed} bytes, listed with {size}"
    elif member.header + _LOCAL_SIZE + packed > holder.size:
        problem = "it reaches beyond the zip's end"
    names.add(raw)
    return ZipEntry(name, member, problem)


def _wide(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """The three fields, those that are full (0xFFFFFFFF) replaced by their zip64 values."""
    values = [size, packed, header]
    if 0xFFFFFFFF not in values:
        return size, packed, header
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, place + 4))
            values = [next(wide, value) if value == 0xFFFFFFFF else value for value in values]
            break
        place += 4 + length
    return values[0], values[1], values[2]


def _flag_overlaps(entries: list[ZipEntry], end: int) -> Iterator[ZipEntry]:
    order = sorted(range(len(entries)), key=lambda i: entries[i].member.header)
    following = array("q", bytes(8 * len(entries)))
    limit = end
    for i in reversed(order):
        following[i] = min(limit, 2**62)
        limit = min(entries[i].member.header, limit)
    neighbours = zip(order, order[1:], strict=False)
    shared = {i for pair in neighbours if len({entries[i].member.header for i in pair}) == 1 for i in pair}
    for i, entry in enumerate(entries):
        member = entry.member
        overlaps = i in shared or member.header + _LOCAL_SIZE + member.packed > following[i]
        if overlaps and not entry.problem:
            entry = ZipEntry(entry.name, member, "its bytes overlap another member's")
        yield entry


def _find_directory(file: BinaryIO, end: int) -> tuple[int, int, int]:
    """(start, size) of the central directory, and by how many bytes everything lies further back than it says."""
    tail_start = max(end - 65_535 - _END.size - _END64_LOCATOR.size, 0)
    file.seek(tail_start)
    tail = file.read(end - tail_start)
    place = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
    if place < 0:
        raise ValueError("no directory at its end: it is cut off, or no zip")
    _, disk, _, _, _, size, start, _ = _END.unpack_from(tail, place)
    directory_end = tail_start + place
    locator = tail[place - _END64_LOCATOR.size : place] if place >= _END64_LOCATOR.size else b""
    if 0xFFFFFFFF in (size, start) or locator.startswith(b"PK\x06\x07"):
        _, _, at, _ = _END64_LOCATOR.unpack(locator)
        file.seek(min(at, end))
        wide = file.read(_END64.size)
        if not wide.startswith(b"PK\x06\x06"):
            raise ValueError("its zip64 directory is not where it says")
        *_, size, start = _END64.unpack(wide)
        directory_end = at
    if disk not in (0, 0xFFFF):
        raise ValueError("it is one volume of several")
    # What was put before a zip (a program that unpacks it) moves everything but not the numbers.
    shift = directory_end - size - start
    if shift < 0:
        raise ValueError("its directory lies outside of it")
    return start + shift, size, shift
