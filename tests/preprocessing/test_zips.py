"""The zip reader on right, odd and hostile zips, and on whatever hypothesis makes of them."""

import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from preprocessing.places import PlaceError, StampedFile, ZipMember, holder_of, read_place
from preprocessing.zips import ZipEntry, zip_entries

LIMIT = 1 << 20


def make(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


def entries(path: Path) -> list[ZipEntry]:
    with open(path, "rb") as file:
        return list(zip_entries(file, holder_of(path)))


def read_all(path: Path) -> dict[str, bytes]:
    return {entry.name: read_place(entry.member, LIMIT) for entry in entries(path) if not entry.problem}


@given(
    st.dictionaries(st.text(min_size=1, max_size=20).filter(lambda name: "\0" not in name), st.binary(max_size=200)),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=40),
    st.binary(max_size=40),
)
@example(members={}, method=zipfile.ZIP_STORED, comment=b"", before=b"PK\x06\x07")
@settings(max_examples=60)
def test_what_was_packed_comes_out(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes], method: int, comment: bytes, before: bytes
) -> None:
    members = {name.encode("utf-8", "ignore").decode(): data for name, data in members.items()}
    members = {name: data for name, data in members.items() if name.strip("/") == name and name}
    path = tmp_path_factory.mktemp("zip") / "x.zip"
    path.write_bytes(before + make(members, method, comment))
    assert read_all(path) == members


def test_more_members_than_the_old_format_counts(tmp_path: Path) -> None:
    local = [struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 5, 0) + b"%05d" % n for n in range(70_000)]
    fields = (b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0)
    directory = [struct.pack("<4s6H3I5H2I", *fields, 35 * n) + b"%05d" % n for n in range(70_000)]
    size, at = 51 * 70_000, 35 * 70_000
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 70_000, 70_000, size, at)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at + size, 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, size, at, 0)
    (tmp_path / "x.zip").write_bytes(b"".join([*local, *directory, end64, locator, end]))
    found = entries(tmp_path / "x.zip")
    assert len(found) == 70_000 and not any(entry.problem for entry in found) and found[-1].name == "69999"


def test_members_beyond_four_gigabytes_are_found_by_their_wide_fields(tmp_path: Path) -> None:
    """A zip64 directory, at the end of a sparse file."""
    data, start = b"photo", 5 << 30
    name, crc = b"a.jpg", zlib.crc32(b"photo")
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 45, 0, 0, 0, 0, crc, len(data), len(data), len(name), 0) + name + data
    extra = struct.pack("<2HQ", 1, 8, start)
    fields = (b"PK\1\2", 45, 45, 0, 0, 0, 0, crc, len(data), len(data), len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
    directory = struct.pack("<4s6H3I5H2I", *fields) + name + extra
    at = start + len(local)
    end64 = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, len(directory), at)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at + len(directory), 1)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(directory), 0xFFFFFFFF, 0)
    with open(tmp_path / "x.zip", "wb") as file:
        file.seek(start)
        file.write(local + directory + end64 + locator + end)
    assert read_all(tmp_path / "x.zip") == {"a.jpg": data}


def test_a_second_name_and_odd_kinds_have_a_problem_each(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a.jpg", b"one")
        archive.writestr("folder/", b"")
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lzma.jpg", b"x" * 50, zipfile.ZIP_LZMA)
        archive.writestr("a.jpg", b"two")
    problems = [(entry.name, entry.problem.partition(" ")[0]) for entry in entries(tmp_path / "x.zip")]
    assert problems == [("a.jpg", ""), ("link.jpg", "a"), ("lzma.jpg", "packed"), ("a.jpg", "the")]


def test_an_encrypted_member_is_refused(tmp_path: Path) -> None:
    data = bytearray(make({"a.jpg": b"photo"}))
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    assert [entry.problem for entry in entries(tmp_path / "x.zip")] == ["encrypted"]


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """How 40 kB become petabytes: many entries of the directory point to one member."""
    data = make({"a.jpg": bytes(1000), "b.jpg": bytes(1000)})
    place = data.rindex(b"PK\1\2")
    shared = data[: place + 42] + struct.pack("<I", 0) + data[place + 46 :]
    (tmp_path / "x.zip").write_bytes(shared)
    assert all("overlap" in entry.problem for entry in entries(tmp_path / "x.zip"))


def _changed(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


@pytest.mark.parametrize(
    "field, value, reason",
    [
        (16, 1, "checksum_mismatch"),  # CRC
        (24, 99, "size_mismatch"),  # smaller than what comes out
        (24, 2000, "size_mismatch"),  # larger
        (24, 1 << 21, "too_large"),
        (20, 3, "size_mismatch"),  # the packed size: the data end too early
    ],
)
def test_what_the_directory_claims_is_not_believed(field: int, value: int, reason: str, tmp_path: Path) -> None:
    data = make({"a.jpg": bytes(1000)})
    (tmp_path / "x.zip").write_bytes(_changed(data, data.index(b"PK\1\2") + field, value))
    (entry,) = entries(tmp_path / "x.zip")
    assert entry.problem == ""
    with pytest.raises(PlaceError) as caught:
        read_place(entry.member, LIMIT)
    assert caught.value.reason == reason


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(make({"a.jpg": bytes(40 << 20)}))
    (entry,) = entries(tmp_path / "x.zip")
    with pytest.raises(PlaceError, match="no photo") as caught:
        read_place(entry.member, 1 << 30)
    assert caught.value.reason == "too_large"


def test_a_zip_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(make({"a.jpg": b"one"}))
    (entry,) = entries(path)
    path.write_bytes(make({"a.jpg": b"one and more"}))
    with pytest.raises(PlaceError) as caught:
        read_place(entry.member, LIMIT)
    assert caught.value.reason == "changed"
    path.unlink()
    with pytest.raises(PlaceError) as caught:
        read_place(entry.member, LIMIT)
    assert caught.value.reason == "missing_file"


@pytest.mark.parametrize(
    "data",
    [b"", b"PK", b"not a zip at all" * 9, make({"a": b"x"})[:-9]],
    ids=["empty", "magic alone", "text", "cut off"],  # the last holds the time: no name for two workers
)
def test_what_is_no_zip_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(UserError, match="zip"):
        entries(tmp_path / "x.zip")


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8), st.integers(0, 10_000))
@settings(max_examples=150)
def test_a_damaged_zip_never_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(make({"a.jpg": b"abc" * 50, "b/c.jpg": os.urandom(60), "d.jpg": b""}))
    for place, value in changes:
        data[place % len(data)] = value
    path = tmp_path_factory.mktemp("zip") / "x.zip"
    path.write_bytes(data[: cut % len(data)] if cut % 3 == 0 else data)
    try:
        found = entries(path)
    except UserError:
        return
    for entry in found:
        try:
            assert len(read_place(entry.member, LIMIT)) == entry.member.size
        except PlaceError as error:
            assert error.reason and error.detail


def test_a_member_is_small_when_it_travels() -> None:
    import pickle

    holder = StampedFile(Path("/data/celeba/Img/img_align_celeba.zip"), 10**9, 10**18)
    one = [ZipMember(holder, place, 90, 7000, 7001, 8, 1) for place in range(1000)]
    assert len(pickle.dumps(one)) < 60_000
