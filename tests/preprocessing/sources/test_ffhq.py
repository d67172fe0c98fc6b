"""The FFHQ reader on small roots of the official layout, right and wrong."""

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from preprocessing.faces import Face
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import Reason
from preprocessing.shards import read_tar
from preprocessing.sources import Record, open_source
from preprocessing.sources.ffhq import JSON_NAME, _entries


def write_root(root: Path, count: int = 4, folder: str = "images1024x1024", side: int = 32) -> dict[str, Any]:
    """A root as the download script leaves it; returns the json's object."""
    entries = {}
    for index in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (side, side), (index, 100, 200)).save(buffer, "PNG")
        path = f"{folder}/00000/{index:05d}.png"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(buffer.getvalue())
        part = {
            "file_url": "https://example.org/x",
            "file_path": path,
            "file_size": len(buffer.getvalue()),
            "file_md5": hashlib.md5(buffer.getvalue()).hexdigest(),
            "pixel_size": [side, side],
        }
        landmarks = [[10.0 + point % 10, 8.0 + point / 5] for point in range(68)]
        entries[str(index)] = {
            "category": "training",
            "metadata": {"author": f"author {index}", "license": "Attribution License"},
            "image": {"file_path": "none", "pixel_size": [1024, 1024]} | {"face_landmarks": landmarks},
            "thumbnail": {},
            "in_the_wild": {"face_landmarks": landmarks},
        }
        kind = {"images1024x1024": "image", "thumbnails128x128": "thumbnail", "in-the-wild-images": "in_the_wild"}[
            folder
        ]
        entries[str(index)][kind] |= part
    write_json(root, entries)
    return entries


def write_json(root: Path, entries: Any) -> None:
    (root / JSON_NAME).write_text(json.dumps(entries), encoding="utf-8")


def read(root: Path) -> dict[str, Record]:
    source = open_source(f"ffhq:{root}")
    records = list(source.records())
    assert records == list(source.records())
    assert len({record.origin for record in records}) == len(records)
    return {record.origin: record for record in records}


def origin(index: int) -> str:
    return f"images1024x1024/00000/{index:05d}.png"


def test_a_right_root(tmp_path: Path) -> None:
    entries = write_root(tmp_path)
    records = read(tmp_path)
    assert list(records) == [origin(index) for index in range(4)]
    record = records[origin(2)]
    assert record.path == tmp_path / origin(2) and record.problem is None
    assert (record.source, record.license, record.author) == ("ffhq", "Attribution License", "author 2")
    assert record.md5 == entries["2"]["image"]["file_md5"] and record.pixels == (32, 32) and record.split == "training"
    assert record.faces is not None and len(record.faces) == 1
    assert record.faces[0].box[0] == 10.0


def test_terms_and_license_files(tmp_path: Path) -> None:
    write_root(tmp_path)
    (tmp_path / "images1024x1024" / "LICENSE.txt").write_text("CC")
    source = open_source(f"ffhq:{tmp_path}")
    assert "CC BY-NC-SA 4.0" in source.terms
    assert source.license_files == (tmp_path / "images1024x1024" / "LICENSE.txt",)


def test_thumbnails_have_the_landmarks_of_the_aligned_picture_made_smaller(tmp_path: Path) -> None:
    write_root(tmp_path, folder="thumbnails128x128", side=128)
    record = read(tmp_path)["thumbnails128x128/00000/00001.png"]
    assert record.problem is None and record.faces is not None
    assert record.faces[0].box[0] == pytest.approx(10.0 / 8)


def test_pictures_in_the_wild(tmp_path: Path) -> None:
    write_root(tmp_path, folder="in-the-wild-images")
    record = read(tmp_path)["in-the-wild-images/00000/00001.png"]
    assert record.problem is None and record.faces is not None and record.faces[0].box[0] == 10.0


def write_wild(root: Path, same: dict[int, int]) -> dict[str, Any]:
    """Photos in the wild with a quad each; photo a of `same` is a copy of photo b."""
    entries = write_root(root, count=6, folder="in-the-wild-images")
    for index in range(6):
        part = entries[str(index)]["in_the_wild"]
        part["face_quad"] = [[1.0 + index, 2], [1, 20], [20, 20], [20, 2]]
        part["face_landmarks"] = [[x + index / 10, y] for x, y in part["face_landmarks"]]
        if index in same:
            twin = entries[str(same[index])]["in_the_wild"]
            (root / part["file_path"]).write_bytes((root / twin["file_path"]).read_bytes())
            part |= {name: twin[name] for name in ("file_md5", "file_size")}
    write_json(root, entries)
    return entries


def test_the_face_quad_travels_with_its_face(tmp_path: Path) -> None:
    write_wild(tmp_path, {})
    limits = SimpleNamespace(pixels=16, min_side=16, max_pixels=10_000)
    result = ingest_chunk(list(open_source(f"ffhq:{tmp_path}").records()), set(), limits)
    assert result.tar is not None
    (about,) = [one.json() for one in read_tar(result.tar) if one.json()["origin"].endswith("00003.png")]
    assert about["faces"][0]["quad"] == [[2.0, 1.0], [0.5, 10.0], [10.0, 10.0], [10.0, 1.0]]
    assert Face.from_json(about["faces"][0]).as_json() == about["faces"][0]


def test_one_photo_under_several_indices_has_all_faces_and_is_kept_once(tmp_path: Path) -> None:
    write_wild(tmp_path, {3: 1, 5: 1})
    records = read(tmp_path)
    name = "in-the-wild-images/00000/0000{}.png".format
    for index in (1, 3, 5):
        faces = records[name(index)].faces
        assert faces is not None and [face.quad[0][0] for face in faces] == [2.0, 4.0, 6.0]
        assert records[name(index)].twin == "one photo of entries 1, 3, 5"
    assert records[name(2)].twin == "" and len(records[name(2)].faces or ()) == 1
    limits = SimpleNamespace(pixels=16, min_side=16, max_pixels=10_000)
    rows = ingest_chunk(list(records.values()), set(), limits).rows
    assert [row.reason for row in rows] == ["", "", "", Reason.DUPLICATE, "", Reason.DUPLICATE]
    assert "one photo of entries 1, 3, 5" in rows[3].detail
    # Where the first of them is damaged, another one is kept, with all faces.
    (tmp_path / name(1)).write_bytes(b"damaged")
    rows = ingest_chunk(list(read(tmp_path).values()), set(), limits).rows
    assert [row.reason for row in rows] == ["", Reason.SIZE_MISMATCH, "", "", "", Reason.DUPLICATE]


def test_two_entries_of_one_file_in_the_wild_are_one_photo_with_two_faces(tmp_path: Path) -> None:
    entries = write_wild(tmp_path, {})
    entries["4"]["in_the_wild"]["file_path"] = entries["0"]["in_the_wild"]["file_path"]
    entries["4"]["in_the_wild"]["file_md5"] = entries["0"]["in_the_wild"]["file_md5"]
    write_json(tmp_path, entries)
    records = read(tmp_path)
    assert len(records["in-the-wild-images/00000/00000.png"].faces or ()) == 2
    problem = records[f"{JSON_NAME}#4"].problem
    assert problem is not None and problem[0] == Reason.DUPLICATE and "entry 4" in problem[1]


def test_one_folder_can_be_chosen(tmp_path: Path) -> None:
    small = write_root(tmp_path, folder="thumbnails128x128", side=128)
    entries = write_root(tmp_path)
    write_json(tmp_path, {key: entry | {"thumbnail": small[key]["thumbnail"]} for key, entry in entries.items()})
    assert next(iter(read(tmp_path))).startswith("images1024x1024/")
    chosen = open_source(f"ffhq:{tmp_path / 'thumbnails128x128'}")
    assert next(iter(chosen.records())).origin.startswith("thumbnails128x128/")


@pytest.mark.parametrize(
    "text",
    [
        '{"0": {"image": {"file_size": 1' + "0" * 5000 + "}}}",
        '{"0": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"0": "' + "x" * (17 << 20) + '"}',
        "\ufeff{}",
    ],
    ids=["long number", "deep", "long entry", "byte order mark"],
)
def test_a_json_that_would_take_all_memory_or_stack_is_one_sentence(text: str, tmp_path: Path) -> None:
    write_root(tmp_path, count=1)
    (tmp_path / JSON_NAME).write_text(text, "utf-8")
    with pytest.raises(UserError, match="download it again") as caught:
        list(open_source(f"ffhq:{tmp_path}").records())
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            '{"image": {"file_path": "images1024x1024/0.png", "file_md5": "%s", "file_size": NaN}}',
            Reason.BAD_ANNOTATION,
        ),
        (
            '{"image": {"file_path": "images1024x1024/0.png", "file_md5": "%s", "file_size": Infinity}}',
            Reason.BAD_ANNOTATION,
        ),
        (
            '{"image": {"file_path": "images1024x1024/0.png", "file_md5": "%s", "file_size": [3]}}',
            Reason.BAD_ANNOTATION,
        ),
        (
            '{"image": {"file_path": "images1024x1024/\\ud800.png", "file_md5": "%s", "file_size": 3}}',
            Reason.BAD_ANNOTATION,
        ),
        ('{"image": {"file_path": "images1024x1024/0.png", "file_md5": 7, "file_size": 3}}', Reason.BAD_ANNOTATION),
        (
            '{"image": {"file_path": "images1024x1024/写真 ü.png", "file_md5": "%s", "file_size": 3}}',
            Reason.MISSING_FILE,
        ),
    ],
)
def test_an_entry_of_the_wrong_type_costs_itself(text: str, reason: Reason, tmp_path: Path) -> None:
    entries = write_root(tmp_path, count=2)
    good = json.dumps(entries)[1:-1]
    entry = text.replace("%s", "0" * 32)
    (tmp_path / JSON_NAME).write_text(f'{{"\\ud800": {entry}, "\\ud800": 3, {good}}}', "utf-8")
    problems = [record.problem and record.problem[0] for record in read(tmp_path).values()]
    assert problems == [reason, Reason.BAD_ANNOTATION, None, None]
    for record in read(tmp_path).values():
        record.origin.encode()


def test_the_json_disagrees_with_the_folder(tmp_path: Path) -> None:
    entries = write_root(tmp_path, count=8)
    (tmp_path / origin(1)).unlink()
    (tmp_path / "images1024x1024/00000/99999.png").write_bytes(b"not listed")
    (tmp_path / origin(2)).unlink()
    (tmp_path / origin(2)).symlink_to("gone")  # the name is there: reading tells what is wrong
    entries["3"]["image"]["file_path"] = "../../../etc/passwd"
    entries["4"] = "nonsense"
    del entries["5"]["image"]["file_md5"]
    entries["6"]["image"]["face_landmarks"] = [[1, 2]]
    entries["8"] = entries["0"]
    write_json(tmp_path, entries)
    problems = {name: record.problem[0] if record.problem else None for name, record in read(tmp_path).items()}
    assert problems == {
        origin(0): None,
        origin(1): Reason.MISSING_FILE,
        origin(2): None,
        origin(3): Reason.MISSING_ANNOTATION,
        f"{JSON_NAME}#3": Reason.UNSAFE_PATH,
        origin(4): Reason.MISSING_ANNOTATION,
        f"{JSON_NAME}#4": Reason.BAD_ANNOTATION,
        origin(5): Reason.BAD_ANNOTATION,
        origin(6): Reason.BAD_ANNOTATION,
        origin(7): None,
        f"{JSON_NAME}#8": Reason.BAD_ANNOTATION,
        "images1024x1024/00000/99999.png": Reason.MISSING_ANNOTATION,
    }


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "images1024x1024/../../x.png", "a\\..\\b.png", "", "images1024x1024/\0.png"]
)
def test_paths_out_of_the_root_are_never_followed(tmp_path: Path, path: str) -> None:
    entries = write_root(tmp_path, count=1)
    entries["0"]["image"]["file_path"] = path
    write_json(tmp_path, entries)
    record = read(tmp_path)[f"{JSON_NAME}#0"]
    assert record.problem is not None and record.problem[0] == Reason.UNSAFE_PATH
    assert record.path == tmp_path / JSON_NAME


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"0": ', '{"0": {}', '{"0" 1}', "{0: 1}", '{"0": {},}', '{"0": nonsense}']
)
def test_a_broken_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    write_root(tmp_path)
    (tmp_path / JSON_NAME).write_text(text)
    with pytest.raises(UserError, match="download it again"):
        list(open_source(f"ffhq:{tmp_path}").records())


def test_a_folder_without_the_json_or_the_pictures_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=JSON_NAME):
        open_source(f"ffhq:{tmp_path}")
    write_json(tmp_path, {})
    with pytest.raises(UserError, match="images1024x1024"):
        open_source(f"ffhq:{tmp_path}")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), values, max_size=5), st.integers(1, 40), st.sampled_from([None, 1]))
@settings(max_examples=100)
def test_reading_in_blocks_equals_reading_at_once(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, Any], block: int, indent: int | None
) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(entries, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocessing.sources.ffhq._BLOCK", block)
        assert dict(_entries(path, "x")) == entries


@given(values)
@settings(max_examples=100)
def test_whatever_an_entry_says_it_is_a_record(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    root = tmp_path_factory.mktemp("ffhq")
    (root / "images1024x1024").mkdir()
    good = {"file_path": "images1024x1024/0.png", "file_md5": "0" * 32, "file_size": 3}
    write_json(
        root,
        {
            "0": value,
            "1": {"image": value},
            "2": {"image": {**good, "face_landmarks": value}},
            "3": {"image": good, "metadata": value},
        },
    )
    records = list(open_source(f"ffhq:{root}").records())
    assert len(records) == 4 and all(record.problem for record in records)


def test_files_that_are_not_as_listed_are_refused_and_the_rest_is_kept(tmp_path: Path) -> None:
    entries = write_root(tmp_path, count=6)
    with open(tmp_path / origin(1), "r+b") as file:  # one byte changed, the size stays
        file.seek(-3, 2)
        file.write(b"?")
    with open(tmp_path / origin(2), "ab") as file:
        file.write(b"more")
    (tmp_path / origin(3)).unlink()
    (tmp_path / origin(4)).write_bytes((tmp_path / origin(0)).read_bytes())
    entries["4"]["image"] |= {name: entries["0"]["image"][name] for name in ("file_md5", "file_size")}
    entries["5"]["image"]["pixel_size"] = [64, 64]
    write_json(tmp_path, entries)
    (tmp_path / "images1024x1024/extra.png").write_bytes(b"not listed")
    limits = SimpleNamespace(pixels=32, min_side=16, max_pixels=10_000)
    result = ingest_chunk(list(open_source(f"ffhq:{tmp_path}").records()), set(), limits)
    assert {row.origin: row.reason for row in result.rows} == {
        origin(0): "",
        origin(1): Reason.CHECKSUM_MISMATCH,
        origin(2): Reason.SIZE_MISMATCH,
        origin(3): Reason.MISSING_FILE,
        origin(4): Reason.DUPLICATE,
        origin(5): Reason.SIZE_MISMATCH,
        "images1024x1024/extra.png": Reason.MISSING_ANNOTATION,
    }
    assert len(result.keys) == 1
