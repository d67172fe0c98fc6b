"""The webdataset reader on tars of others: what belongs to a picture comes with it, nothing is trusted."""

import io
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import Reason
from preprocessing.shards import read_tar
from preprocessing.sources import Record, open_source

LIMITS = SimpleNamespace(pixels=16, min_side=8, max_pixels=10_000)


def photo(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), (number, 2 * number, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def read(path: Path) -> list[Record]:
    source = open_source(f"webdataset:{path}")
    records = list(source.records())
    assert records == list(source.records())
    assert len({record.origin for record in records}) == len(records)
    return records


def samples(path: Path) -> list[dict[str, Any]]:
    result = ingest_chunk(read(path), set(), LIMITS)
    assert result.tar is not None
    return [sample.json() for sample in read_tar(result.tar)]


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "s-000000.tar")) as writer:
        for number in range(3):
            about = {"license": "CC0", "author": f"author {number}", "identity": number}
            writer.write(
                {"__key__": f"{number:04d}", "png": photo(number), "json": about, "cls": number, "txt": "ein Bild"}
            )
    records = read(tmp_path)
    assert [record.origin for record in records] == [f"s-000000.tar/{number:04d}.png" for number in range(3)]
    assert records[0].source.startswith("webdataset:") and not any(record.problem for record in records)
    found = sorted(samples(tmp_path), key=lambda about: about["origin"])
    assert [about["author"] for about in found] == ["author 0", "author 1", "author 2"]
    assert found[1] | {"license": "CC0", "identity": "1", "text": "ein Bild", "label": "1"} == found[1]
    assert read(tmp_path / "s-000000.tar")[0].path == records[0].path, "one shard can be given alone"


def test_which_member_is_the_photo(tmp_path: Path) -> None:
    one = photo(1)
    write_tar(
        tmp_path / "a.tar",
        {
            "1.jpg": one,
            "1.mask.png": one,
            "2.photo.jpg": one,
            "2.txt": b"x",
            "f/3.jpg": one,
            "f/3.png": one,
            "4.npy": b"",
        },
    )
    assert [record.origin for record in read(tmp_path)] == [
        "a.tar/1.jpg",
        "a.tar/2.photo.jpg",
        "a.tar/f/3.jpg",
        "a.tar/f/3.png",
    ]


@pytest.mark.parametrize(
    "name, data",
    [
        ("1.json", b"{"),
        ("1.json", b"[]"),
        ("1.json", b"[" * 200_000),
        ("1.json", b'{"author": "' + b"x" * (1 << 20) + b'"}'),
        ("1.txt", b"x" * (1 << 20 | 1)),
    ],
)
def test_what_lies_beside_costs_its_own_photo_where_it_is_broken(name: str, data: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.png": photo(0), "1.png": photo(1), name: data, "2.png": photo(2)})
    rows = ingest_chunk(read(tmp_path), set(), LIMITS).rows
    assert [row.reason for row in rows] == ["", Reason.BAD_ANNOTATION, ""]


@pytest.mark.parametrize(
    "data",
    [
        b'{"license": NaN, "author": ["x"], "identity": true}',
        b'{"license": {"a": 1}, "caption": 3}',
        '{"author": "\\ud800", "caption": "\U0001f600 \\u0000"}'.encode(),
        b"",
    ],
)
def test_what_is_of_another_type_is_left_out(data: bytes, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": photo(1), "1.json": data or b"{}", "1.txt": b"\xff\xfe"})
    (about,) = samples(tmp_path)
    assert about["license"] == "" and about["identity"] is None and about["text"] == "\\xff\\xfe"


def test_two_pieces_of_one_name_are_two_samples_and_no_photo_is_lost(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": photo(1), "2.png": photo(2), "1.json": b'{"author": "late"}'})
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        info = tarfile.TarInfo("1.png")
        info.size = len(photo(3))
        tar.addfile(info, io.BytesIO(photo(3)))
    records = read(tmp_path)
    assert [(record.origin, record.problem and record.problem[0]) for record in records] == [
        ("a.tar/1.png", None),
        ("a.tar/2.png", None),
        ("a.tar/1.png'", Reason.BAD_ARCHIVE),
    ]


@pytest.mark.parametrize(
    "place", ["pipe:cat /etc/passwd", "pipe:touch {tmp}/owned", "http://example.org/{000..999}.tar", "-"]
)
def test_what_is_no_place_is_refused_in_one_sentence(place: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_source(f"webdataset:{place.replace('{tmp}', str(tmp_path))}")
    assert "\n" not in str(caught.value) and not (tmp_path / "owned").exists()


def test_what_is_named_like_a_tar_and_is_none_costs_itself(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"1.png": photo(1)})
    (tmp_path / "b.tar").mkdir()
    os.mkfifo(tmp_path / "c.tar")
    (tmp_path / "d.tar").symlink_to("gone")
    found = {record.origin: record.problem and record.problem[0] for record in read(tmp_path)}
    expected = {"a.tar/1.png": None} | dict.fromkeys(("b.tar", "c.tar", "d.tar"), Reason.UNREADABLE)
    assert found == expected


def test_a_folder_without_tars_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no .tar"):
        open_source(f"webdataset:{tmp_path}")


names = st.text(st.sampled_from("ab./\\jpgsontx'\"é\n "), min_size=1, max_size=12)


@given(st.lists(st.tuples(names, st.sampled_from([b"0", b"1", b"2", b"3", b"5"]), st.binary(max_size=30)), max_size=8))
@settings(max_examples=80)
def test_whatever_a_tar_holds_each_record_is_kept_or_refused(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes, bytes]]
) -> None:
    root = tmp_path_factory.mktemp("wds")
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))
    records = read(root)
    rows = ingest_chunk(records, set(), LIMITS).rows
    assert [row.origin for row in rows] == [record.origin for record in records]
    assert all(row.reason and row.detail for row in rows)  # none of these bytes is a photo
