"""The members of anybody's tar, by their headers alone: nothing is unpacked, no link followed, no size believed.

`shards.read_tar` reads our own tars and refuses everything else as a whole; here each odd member costs itself.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_BLOCK = 512
_MOST_EXTENSION_BYTES = 1 << 16  # of a long name or a pax header
_SKIPPED = (tarfile.DIRTYPE, b"g")  # folders, and pax headers for the whole archive (comments, mostly)
_PAX_FIELD = re.compile(rb"(\d{1,6}) ([^=]+)=")
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class TarEntry:
    """A member's name and the bytes [start, start + size) of its content; problem: a sentence, "" where it is sound."""

    name: str
    start: int
    size: int
    problem: str = ""


def tar_entries(file: BinaryIO, end: int) -> Iterator[TarEntry]:
    """Every member but folders, in order. Damage ends the walk: what it hides has one entry, with the problem."""
    offset, long_name, pax = 0, "", dict[str, str]()
    while offset < end:
        file.seek(offset)
        header = file.read(_BLOCK)
        if len(header) == _BLOCK and not any(header):
            return
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace")
        except (tarfile.HeaderError, ValueError) as error:
            yield TarEntry("", offset, 0, f"no tar header at byte {offset} ({error}): the rest is not read")
            return
        start, size = offset + _BLOCK, member.size
        if member.type not in (b"x", b"L", b"K", b"g"):
            size = _pax_size(pax, size)
        name = _clean(pax.get("path") or long_name or member.name)
        if not 0 <= size <= end - start:
            yield TarEntry(name, start, 0, f"claims {member.size} bytes, {end - start} are left: the rest is not read")
            return
        offset = start + -(-size // _BLOCK) * _BLOCK
        if member.type in (b"x", b"L", b"K"):
            if size > _MOST_EXTENSION_BYTES:
                yield TarEntry(name, start, 0, f"an extended header of {size} bytes: the rest is not read")
                return
            file.seek(start)
            content = file.read(size)
            if member.type == b"x":
                pax = _pax_fields(content)
            elif member.type == b"L":
                long_name = content.rstrip(b"\0").decode("utf-8", "backslashreplace")
            continue
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not member.isdir():
            sparse = any(field.startswith("GNU.sparse") for field in pax)
            yield TarEntry(name, start, size, "a sparse file" if sparse else "")
        elif member.type not in _SKIPPED:
            yield TarEntry(name, start, size, _KINDS.get(member.type, f"of the unknown type {member.type!r}"))
        long_name, pax = "", {}
    yield TarEntry("", end, 0, "the tar ends before its end mark")


def _pax_fields(content: bytes) -> dict[str, str]:
    """ "LENGTH key=value\\n" again and again; what is damaged says nothing."""
    fields, place = dict[str, str](), 0
    while match := _PAX_FIELD.match(content, place):
        stop = place + int(match[1])
        if stop <= match.end() or stop > len(content):
            break
        key, value = match[2], content[match.end() : stop - 1]
        fields[key.decode("utf-8", "backslashreplace")] = value.decode("utf-8", "backslashreplace")
        place = stop
    return fields


def _pax_size(pax: dict[str, str], size: int) -> int:
    text = pax.get("size", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else size


def _clean(name: str) -> str:
    # TarInfo keeps surrogates of names that are no UTF-8; they would not fit into JSON or the catalog.
    return name.encode("utf-8", "backslashreplace").decode("utf-8")
