"""Sources that are damaged or set a trap: every record ends kept, or refused with a reason, and the counts add up.

Each case makes a source of a few good photos with something wrong beside them; what it must come to is written there.
Nothing of a case may reach outside of its source: a file beside it would show that.
"""

import io
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from preprocessing.catalog import KEPT, REFUSED
from preprocessing.ingesting import chunk, ingest_chunk
from preprocessing.photos import Reason
from preprocessing.shards import read_tar
from preprocessing.sources import Record, Surroundings, open_source

LIMITS = SimpleNamespace(pixels=16, min_side=8, max_pixels=1_000_000)


def photo(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def _zip(root: Path, *odd: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(root / "x.zip", "w", method) as archive:
        archive.writestr("good/1.jpg", photo(1))
        for name, data in odd:
            archive.writestr(name, data)
        archive.writestr("good/2.jpg", photo(2))
    return "folder:{root}/x.zip"


def _patched_zip(root: Path, change: Callable[[bytearray, int], None]) -> str:
    """`change` gets the zip's bytes and where the directory's entry of the middle member begins."""
    spec = _zip(root, ("odd.jpg", photo(3) + bytes(4000)))
    data = bytearray((root / "x.zip").read_bytes())
    change(data, data.index(b"PK\1\2", data.index(b"PK\1\2") + 4))
    (root / "x.zip").write_bytes(data)
    return spec


def _put(offset: int, form: str, *values: int) -> Callable[[bytearray, int], None]:
    return lambda data, entry: struct.pack_into(form, data, entry + offset, *values)


def _kind(mode: int, name: str = "odd.jpg") -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def _tar(root: Path, *odd: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.GNU_FORMAT) -> str:
    with tarfile.open(root / "x.tar", "w", format=form) as tar:
        _add(tar, "1.jpg", photo(1))
        for one in odd:
            if isinstance(one, tarfile.TarInfo):
                tar.addfile(one, io.BytesIO(bytes(one.size)))
            else:
                _add(tar, *one)
        _add(tar, "2.jpg", photo(2))
    return "webdataset:{root}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _member(kind: bytes, link: str = "", name: str = "odd.jpg", pax: dict[str, str] | None = None) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, link, pax or {}
    return info


def _cut_tar(root: Path, keep: int) -> str:
    spec = _tar(root)
    (root / "x.tar").write_bytes((root / "x.tar").read_bytes()[:keep])
    return spec


def _nested(levels: int) -> bytes:
    """A tar of a tar of a tar: opened, each would hold many."""
    data = b""
    for _ in range(levels):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for number in range(3):
                _add(tar, f"{number}.tar", data)
        data = buffer.getvalue()
    return data


def _files(root: Path, **odd: bytes) -> str:
    for name, data in {"1.jpg": photo(1), "2.jpg": photo(2), **odd}.items():
        (root / name).write_bytes(data)
    return "folder:{root}"


def _deep_folder(root: Path) -> str:
    folder = root / "/".join("d" * 60)
    folder.mkdir(parents=True)
    (folder / "3.jpg").write_bytes(photo(3))
    return _files(root)


def _bad_utf8(root: Path) -> str:
    with open(os.fsencode(root) + b"/caf\xe9\n.jpg", "wb") as file:
        file.write(photo(3))
    return _files(root)


def _gzip_tar(root: Path) -> str:
    _tar(root)
    with open(root / "y.tar.gz", "wb") as file:  # 200 MB of zeros in 200 kB
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        for _ in range(20):
            file.write(packer.compress(bytes(10 << 20)))
        file.write(packer.flush())
    return "webdataset:{root}"


def _overlapping(root: Path) -> str:
    """Many names for one member: the zip of death."""
    spec = _zip(root)
    data = (root / "x.zip").read_bytes()
    place, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    first = data[place : data.index(b"PK\1\2", place + 4)]
    more = b"".join(first.replace(b"good/1.jpg", b"bad/%02d.jpg" % number) for number in range(40))
    directory = data[place:end] + more
    tail = bytearray(data[end:])
    struct.pack_into("<2H2I", tail, 8, 42, 42, len(directory), place)
    (root / "x.zip").write_bytes(data[:place] + directory + tail)
    return spec


BAD, UNSAFE, LARGE = Reason.BAD_ARCHIVE, Reason.UNSAFE_PATH, Reason.TOO_LARGE
TWO = {None: 2}
# id -> (what makes the source, what its records come to; a sentence where the whole source is refused)
CASES: dict[str, tuple[Callable[[Path], str], dict[Reason | None, int] | str]] = {
    "zip: sound": (lambda root: _zip(root), TWO),
    "zip: absolute path": (lambda root: _zip(root, ("/tmp/odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "zip: dot dot": (lambda root: _zip(root, ("../../odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "zip: dot dot inside": (lambda root: _zip(root, ("a/../b/odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "zip: backslashes": (lambda root: _zip(root, ("..\\odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "zip: drive letter": (lambda root: _zip(root, ("C:/odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "zip: symbolic link": (lambda root: _zip(root, (_kind(stat.S_IFLNK), b"/etc/passwd")), {**TWO, BAD: 1}),
    "zip: device": (lambda root: _zip(root, (_kind(stat.S_IFCHR), b"")), {**TWO, BAD: 1}),
    "zip: pipe": (lambda root: _zip(root, (_kind(stat.S_IFIFO), b"")), {**TWO, BAD: 1}),
    "zip: one name twice": (lambda root: _zip(root, ("odd.jpg", photo(3)), ("odd.jpg", photo(4))), {None: 3, BAD: 1}),
    "zip: bomb": (lambda root: _zip(root, ("odd.jpg", bytes(20 << 20))), {**TWO, LARGE: 1}),
    "zip: bzip2 bomb": (
        lambda root: _zip(root, ("odd.jpg", bytes(1 << 20)), method=zipfile.ZIP_BZIP2),
        {BAD: 3},
    ),
    "zip: zip inside": (lambda root: _zip(root, ("odd.zip", bytes(99)), ("odd.tar", _nested(3))), TWO),
    "zip: overlapping members": (_overlapping, {None: 1, BAD: 41}),
    "zip: wrong CRC": (lambda root: _patched_zip(root, _put(16, "<I", 7)), {**TWO, Reason.CHECKSUM_MISMATCH: 1}),
    "zip: claims less": (lambda root: _patched_zip(root, _put(24, "<I", 9)), {**TWO, Reason.SIZE_MISMATCH: 1}),
    "zip: claims more": (lambda root: _patched_zip(root, _put(24, "<I", 99_999)), {**TWO, Reason.SIZE_MISMATCH: 1}),
    "zip: claims gigabytes": (lambda root: _patched_zip(root, _put(24, "<I", 0xF0000000)), {**TWO, LARGE: 1}),
    "zip: encrypted": (lambda root: _patched_zip(root, _put(8, "<H", 1)), {**TWO, BAD: 1}),
    "zip: member beyond the end": (lambda root: _patched_zip(root, _put(42, "<I", 0x7FFFFFFF)), {**TWO, BAD: 1}),
    "zip: member where none is": (lambda root: _patched_zip(root, _put(42, "<I", 100)), {None: 1, BAD: 2}),
    "zip: directory damaged": (lambda root: _patched_zip(root, _put(0, "<I", 0)), "damaged"),
    "zip: many tiny members": (
        lambda root: _zip(root, *((f"{number}.jpg", b"") for number in range(3000))),
        {**TWO, Reason.EMPTY_FILE: 3000},
    ),
    "zip: control characters and scripts": (lambda root: _zip(root, ("写\x07真😀.jpg", photo(3))), {None: 3}),
    "tar: sound": (lambda root: _tar(root), TWO),
    "tar: absolute path": (lambda root: _tar(root, ("/tmp/odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "tar: dot dot": (lambda root: _tar(root, ("../odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "tar: dot dot of a long name": (lambda root: _tar(root, ("../" * 60 + "odd.jpg", photo(3))), {**TWO, UNSAFE: 1}),
    "tar: hard link": (lambda root: _tar(root, _member(tarfile.LNKTYPE, "1.jpg")), {**TWO, BAD: 1}),
    "tar: symbolic link": (lambda root: _tar(root, _member(tarfile.SYMTYPE, "/etc/passwd")), {**TWO, BAD: 1}),
    "tar: device": (lambda root: _tar(root, _member(tarfile.CHRTYPE)), {**TWO, BAD: 1}),
    "tar: pipe": (lambda root: _tar(root, _member(tarfile.FIFOTYPE)), {**TWO, BAD: 1}),
    "tar: unknown kind": (lambda root: _tar(root, _member(b"V")), {**TWO, BAD: 1}),
    "tar: link then a file through it": (
        lambda root: _tar(root, _member(tarfile.SYMTYPE, "/tmp", "out"), ("out/odd.jpg", photo(3))),
        {None: 3, BAD: 1},
    ),
    "tar: one name twice": (lambda root: _tar(root, ("1.jpg", photo(3))), {**TWO, BAD: 1}),
    "tar: nested tars": (lambda root: _tar(root, ("odd.tar", _nested(6))), {**TWO, BAD: 1}),
    "tar: sparse": (
        lambda root: _tar(root, _member(b"0", pax={"GNU.sparse.realsize": "9" * 18}), form=tarfile.PAX_FORMAT),
        {**TWO, BAD: 1},
    ),
    "tar: pax path with dot dot": (
        lambda root: _tar(root, _member(b"0", pax={"path": "../../odd.jpg"}), form=tarfile.PAX_FORMAT),
        {**TWO, UNSAFE: 1},
    ),
    "tar: pax size beyond the end": (
        lambda root: _tar(root, _member(b"0", pax={"size": "9" * 15}), form=tarfile.PAX_FORMAT),
        {None: 1, BAD: 1},
    ),
    "tar: cut in a header": (lambda root: _cut_tar(root, 512 * 4 + 100), {None: 1, BAD: 1}),
    "tar: cut in a photo": (lambda root: _cut_tar(root, 700), {BAD: 1}),
    "tar: empty file": (lambda root: _cut_tar(root, 0), {BAD: 1}),
    "tar: gzip bomb": (_gzip_tar, {**TWO, BAD: 1}),
    "tar: many tiny members": (
        lambda root: _tar(root, *((f"{number}x.jpg", b"") for number in range(3000))),
        {**TWO, Reason.EMPTY_FILE: 3000},
    ),
    "tar: PNG bomb": (
        lambda root: _tar(root, ("odd.png", _png_bomb())),
        {**TWO, LARGE: 1},
    ),
    "tar: a folder named like a photo": (lambda root: _tar(root, _member(tarfile.DIRTYPE, name="odd.jpg")), TWO),
    "folder: names that are no text": (_bad_utf8, {None: 3}),
    "folder: very deep": (_deep_folder, {None: 3}),
    "folder: archives named like photos": (
        lambda root: _files(
            root, **{"a.jpg": _nested(2), "b.jpg": b"PK\3\4" + bytes(99), "c.jpg": b"\x1f\x8b" + bytes(99)}
        ),
        {**TWO, Reason.NOT_AN_IMAGE: 3},
    ),
    "zip: empty": (lambda root: (zipfile.ZipFile(root / "x.zip", "w").close(), "folder:{root}/x.zip")[1], {}),
    "zip: a web page": (lambda root: ((root / "x.zip").write_bytes(b"<html>"), "folder:{root}/x.zip")[1], "zip"),
}


def _png_bomb() -> bytes:
    header = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return header + struct.pack(">I", zlib.crc32(header[12:])) + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_each_record_is_kept_or_refused(case: str, tmp_path: Path) -> None:
    make, expected = CASES[case]
    root = tmp_path / "deep" / "er" / "root"
    root.mkdir(parents=True)
    spec = make(root).replace("{root}", str(root))
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(root)}
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as caught:
            list(open_source(spec).records())
        assert "\n" not in str(caught.value)
        return
    source = open_source(spec, around=Surroundings(tmp_path / "cache"))
    records = list(source.records())
    assert [record.origin for record in records] == [record.origin for record in source.records()]
    assert come_to(records) == expected
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(root)} == before


def come_to(records: list[Record]) -> dict[Reason | None, int]:
    """What became of the records, after checking that each became something and that the shards agree."""
    known: set[str] = set()
    reasons: list[Reason | None] = []
    samples = 0
    for batch in chunk(records, 500):
        result = ingest_chunk(batch, known, LIMITS)
        assert [row.origin for row in result.rows] == [record.origin for record in batch]
        assert all((row.status == KEPT) == (not row.reason) for row in result.rows)
        assert all(row.detail and "\n" not in row.detail for row in result.rows if row.status == REFUSED)
        reasons += [Reason(row.reason) if row.reason else None for row in result.rows]
        samples += 0 if result.tar is None else sum(1 for _ in read_tar(result.tar))
        known.update(result.keys)
    counts = Counter(reasons)
    assert counts.total() == len(records) and counts[None] == samples == len(known)
    assert len({record.origin for record in records}) == len(records)
    for record in records:
        record.origin.encode()  # fits into the catalog
    return dict(counts)


@pytest.mark.parametrize("kind", ["file", "zip", "tar"])
def test_what_vanishes_or_changes_between_listing_and_reading(kind: str, tmp_path: Path) -> None:
    makers: dict[str, Callable[[Path], str]] = {"file": _files, "zip": _zip, "tar": _tar}
    spec = makers[kind](tmp_path).replace("{root}", str(tmp_path))
    holder = tmp_path / {"file": "1.jpg", "zip": "x.zip", "tar": "x.tar"}[kind]
    records = list(open_source(spec).records())
    data = holder.read_bytes()
    holder.unlink()
    assert come_to(records)[Reason.MISSING_FILE] == (1 if kind == "file" else 2)
    holder.write_bytes(data[: len(data) // 2])
    assert come_to(records)[Reason.TRUNCATED if kind == "file" else Reason.CHANGED] == (1 if kind == "file" else 2)
    holder.unlink()
    holder.mkdir()
    assert come_to(records)[Reason.NOT_A_FILE if kind == "file" else Reason.UNREADABLE] == (1 if kind == "file" else 2)
    assert all(reason.may_mend for reason in (Reason.MISSING_FILE, Reason.CHANGED, Reason.UNREADABLE))


def test_a_file_that_is_written_to_all_the_time_is_kept_or_refused(tmp_path: Path) -> None:
    spec = _files(tmp_path).replace("{root}", str(tmp_path))
    stop, data = threading.Event(), photo(7)

    def write() -> None:
        while not stop.is_set():
            (tmp_path / "1.jpg").write_bytes(data)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            counts = come_to(list(open_source(spec).records()))
            assert set(counts) <= {None, Reason.CHANGED, Reason.TRUNCATED, Reason.EMPTY_FILE, Reason.NOT_AN_IMAGE}
    finally:
        stop.set()
        writer.join()
