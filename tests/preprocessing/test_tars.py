"""The tar reader on right, odd and hostile tars, and on whatever hypothesis makes of them."""

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.tars import TarEntry, tar_entries


def make(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1  # a fraction has a pax header
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def with_member(kind: bytes, name: str = "odd.jpg", size: int = 0, link: str = "/etc/passwd") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for one in ("a.jpg", name, "b.jpg"):
            info = tarfile.TarInfo(one)
            if one == name:
                info.type, info.linkname = kind, link
            info.size = 5 if one != name else size
            tar.addfile(info, io.BytesIO(b"photo"))
    return buffer.getvalue()


def read(data: bytes) -> list[TarEntry]:
    return list(tar_entries(io.BytesIO(data), len(data)))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_what_was_packed_is_found(form: int) -> None:
    members = {"a.jpg": b"one", "folder/b.json": b"{}", "c.cls": b""}
    if form != tarfile.USTAR_FORMAT:
        members |= {"写真 ü 😀.jpg": b"two", "deep/" * 60 + "x.jpg": b"three"}
    data = make(members, form)
    found = read(data)
    assert {entry.name: data[entry.start : entry.start + entry.size] for entry in found} == members
    assert not any(entry.problem for entry in found)


@given(st.dictionaries(st.text(min_size=1, max_size=150), st.binary(max_size=600), max_size=6))
@settings(max_examples=60)
def test_whatever_was_packed_is_found(members: dict[str, bytes]) -> None:
    members = {name.replace("\0", "").encode("utf-8", "ignore").decode().strip("/ "): d for name, d in members.items()}
    members = {name: data for name, data in members.items() if name and "\n" not in name}
    data = make(members)
    assert {entry.name: data[entry.start : entry.start + entry.size] for entry in read(data)} == members


@pytest.mark.parametrize(
    "kind, says",
    [
        (tarfile.LNKTYPE, "hard link"),
        (tarfile.SYMTYPE, "symbolic link"),
        (tarfile.CHRTYPE, "device"),
        (tarfile.BLKTYPE, "device"),
        (tarfile.FIFOTYPE, "pipe"),
        (b"Z", "unknown type"),
    ],
)
def test_an_odd_member_costs_itself(kind: bytes, says: str) -> None:
    found = read(with_member(kind))
    assert [entry.name for entry in found] == ["a.jpg", "odd.jpg", "b.jpg"]
    assert [says in entry.problem for entry in found] == [False, True, False]


def test_a_sparse_file_is_not_taken_for_its_bytes() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = 5, {"GNU.sparse.realsize": str(10**15), "GNU.sparse.major": "1"}
        tar.addfile(info, io.BytesIO(b"photo"))
    (entry,) = read(buffer.getvalue())
    assert entry.problem == "a sparse file"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:700],  # in the middle of the first member's padding
        lambda data: data[: 6 * 512],  # without the end mark
        lambda data: data[:1024] + b"?" * 512 + data[1536:],  # no header where one should be
    ],
)
def test_damage_is_reported_and_what_is_before_it_is_found(damage: Callable[[bytes], bytes]) -> None:
    data = damage(make({"a.jpg": b"x" * 100, "b.jpg": b"y", "c.jpg": b"z"}, tarfile.USTAR_FORMAT))
    *sound, last = read(data)
    assert sound[:1] == [TarEntry("a.jpg", 512, 100)] and last.problem


def test_a_size_beyond_the_end_is_not_believed() -> None:
    data = bytearray(make({"a.jpg": b"x"}, tarfile.USTAR_FORMAT))
    info = tarfile.TarInfo("a.jpg")
    info.size = 10**12
    data[:512] = info.tobuf(tarfile.GNU_FORMAT)
    (entry,) = read(bytes(data))
    assert "claims 1000000000000 bytes" in entry.problem


def test_an_extended_header_that_is_huge_ends_the_walk() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = b"L", 1 << 20
    data = info.tobuf() + bytes(1 << 20) + bytes(1024)
    (entry,) = read(data)
    assert "extended header" in entry.problem


def test_members_without_number_are_walked_without_being_held() -> None:
    header = tarfile.TarInfo("x.jpg").tobuf(tarfile.USTAR_FORMAT)
    data = header * 20_000 + bytes(1024)
    walk = tar_entries(io.BytesIO(data), len(data))
    assert next(walk).name == "x.jpg" and sum(1 for _ in walk) == 19_999


@given(st.binary(max_size=3000))
@settings(max_examples=100)
def test_any_bytes_end_in_entries(data: bytes) -> None:
    for entry in read(data):
        assert 0 <= entry.start <= entry.start + entry.size <= len(data) + 1024


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6), st.integers(0, 6000))
@settings(max_examples=150)
def test_a_damaged_tar_never_breaks_the_reader(changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(make({"a.jpg": b"abc" * 50, "d" * 120 + "/b.json": b"{}", "c.jpg": b""}))
    for place, value in changes:
        data[place % len(data)] = value
    data = data[:cut] if cut % 4 == 0 else data
    for entry in read(bytes(data)):
        assert 0 <= entry.size <= len(data) and entry.start + entry.size <= max(len(data), entry.start)
        entry.name.encode()
