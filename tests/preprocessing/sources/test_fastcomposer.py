"""FastComposer's layout, right and wrong: caption, words and masks come along, or the photo is refused for a reason."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.errors import UserError
from preprocessing.ingesting import ingest_chunk
from preprocessing.photos import Reason
from preprocessing.shards import Sample, decode_instances, read_tar
from preprocessing.sources import Record, open_source

LIMITS = SimpleNamespace(pixels=16, min_side=8, max_pixels=10_000)
CAPTION = "a man in a suit and a tall woman 😀"


def write_sample(root: Path, number: str, side: int = 32, **changes: Any) -> None:
    """A man on the left, a woman on the right, a tie between them."""
    ids = np.zeros((side, side), np.int32)
    ids[4:30, 18:30], ids[4:30, 2:14], ids[10:12, 15:17] = 7, 3, 5
    segments = [
        {"id": 7, "end": CAPTION.index("woman") + 5, "bbox": [18, 4, 30, 30], "coco_label": "person"},
        {"id": 5, "end": 15, "bbox": [15, 10, 17, 12], "coco_label": "tie"},
        {"id": 3, "end": 5, "bbox": [2, 4, 14, 30], "coco_label": "person"},
    ]
    folder = root / number[:5]
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (40 * int(number) % 250, 90, 40)).save(folder / f"{number}.jpg")
    (folder / f"{number}.json").write_text(json.dumps({"caption": CAPTION, "segments": segments} | changes))
    np.save(folder / f"{number}.npy", ids)


def write_root(root: Path, count: int = 3) -> list[str]:
    ids = [f"{number:08d}" for number in range(count)]
    for number in ids:
        write_sample(root, number)
    for name, chosen in (("", ids), ("_train", ids[:-1]), ("_test", ids[-1:])):
        (root / f"image_ids{name}.txt").write_text("\n".join(chosen) + "\n")
    return ids


def read(root: Path) -> list[Record]:
    records = list(open_source(f"fastcomposer:{root}").records())
    assert len({record.origin for record in records}) == len(records)
    return records


def samples(root: Path) -> list[Sample]:
    result = ingest_chunk(read(root), set(), LIMITS)
    assert result.tar is not None
    return sorted(read_tar(result.tar), key=lambda sample: str(sample.json()["origin"]))


def reasons(root: Path) -> list[str]:
    rows = ingest_chunk(read(root), set(), LIMITS).rows
    assert all(row.detail for row in rows if row.reason)
    return [row.reason for row in rows]


def test_a_right_root(tmp_path: Path) -> None:
    write_root(tmp_path)
    records = read(tmp_path)
    assert [record.origin for record in records] == [f"00000/0000000{number}.jpg" for number in range(3)]
    assert [record.split for record in records] == ["train", "train", "test"]
    about = samples(tmp_path)[0].json()["prepared"]
    assert about["caption"] == CAPTION
    assert [(one["word"], one["instance"]) for one in about["binding"]] == [("man", 1), ("woman", 2)]
    assert all(CAPTION[one["start"] : one["end"]] == one["word"] for one in about["binding"])
    assert [person["box"] for person in about["people"]] == [[1, 2, 7, 15], [9, 2, 15, 15]]
    instances = decode_instances(samples(tmp_path)[0].parts["instances.png"])
    assert instances.shape == (16, 16) and instances[5, 3] == 1 and instances[5, 12] == 2
    assert instances[5, 7] == 0, "a tie is nobody"


def test_listing_opens_neither_json_nor_masks(tmp_path: Path) -> None:
    for number in write_root(tmp_path):
        for suffix in ("jpg", "json", "npy"):
            (tmp_path / number[:5] / f"{number}.{suffix}").write_bytes(b"never looked at")
    assert not any(record.problem for record in read(tmp_path))


def test_a_wide_picture_and_its_masks_are_cut_to_the_same_square(tmp_path: Path) -> None:
    write_root(tmp_path, 1)
    pixels = np.zeros((16, 40, 3), np.uint8)
    pixels[:, 25:33] = 255
    ids = (pixels[:, :, 0] > 0).astype(np.int64) * 3
    Image.fromarray(pixels).save(tmp_path / "00000/00000000.jpg", quality=95)
    np.save(tmp_path / "00000/00000000.npy", ids)
    segments = [{"id": 3, "end": 5, "bbox": [25, 0, 33, 16], "coco_label": "person"}]
    (tmp_path / "00000/00000000.json").write_text(json.dumps({"caption": CAPTION, "segments": segments}))
    (sample,) = samples(tmp_path)
    picture = np.asarray(Image.open(io.BytesIO(sample.parts["jpg"])).convert("L"))
    assert ((picture > 127) == (decode_instances(sample.parts["instances.png"]) > 0)).mean() > 0.95


def test_of_two_masks_for_one_word_the_larger_has_it(tmp_path: Path) -> None:
    write_root(tmp_path, 1)
    segments = [{"id": one, "end": 5, "bbox": [0, 0, 9, 9], "coco_label": "person"} for one in (3, 5)]
    write_sample(tmp_path, "00000000", segments=segments)
    about = samples(tmp_path)[0].json()["prepared"]
    assert len(about["people"]) == 2 and [one["instance"] for one in about["binding"]] == [1]


def test_lists_and_files_disagree(tmp_path: Path) -> None:
    ids = write_root(tmp_path, 6)
    (tmp_path / "image_ids.txt").write_text("\r\n".join([*ids[:5], ids[1], "../../etc/passwd", "", "99999999", "写真"]))
    (tmp_path / "00000" / "00000002.json").unlink()
    (tmp_path / "00000" / "00000003.npy").unlink()
    (tmp_path / "00000" / "00000004.jpg").unlink()
    (tmp_path / "00009").mkdir()
    (tmp_path / "00000" / "00000000.jpg").rename(tmp_path / "00009" / "00000000.jpg")
    found = {record.origin: record.problem and record.problem[0] for record in read(tmp_path)}
    assert found == {
        "00000/00000001.jpg": None,
        "00000/00000002.jpg": Reason.MISSING_ANNOTATION,
        "00000/00000003.jpg": Reason.MISSING_ANNOTATION,
        "00000/00000005.jpg": Reason.MISSING_ANNOTATION,
        "00009/00000000.jpg": Reason.BAD_ANNOTATION,
        "00000/00000000.jpg": Reason.MISSING_FILE,
        "00000/00000004.jpg": Reason.MISSING_FILE,
        "99999/99999999.jpg": Reason.MISSING_FILE,
        "image_ids.txt#../../etc/passwd": Reason.UNSAFE_PATH,
        "image_ids.txt#写真": Reason.UNSAFE_PATH,
        "image_ids.txt#line 6": Reason.BAD_ANNOTATION,
    }


def person(**changes: Any) -> list[dict[str, Any]]:
    return [{"id": 3, "end": 5, "bbox": [2, 4, 14, 30], "coco_label": "person"} | changes]


@pytest.mark.parametrize(
    "changes",
    [
        {"caption": 3},
        {"caption": "\ud800 man"},
        {"segments": {}},
        {"segments": person() * 256},
        {"segments": person() * 2},
        {"segments": [3]},
        {"segments": person(id="3")},
        {"segments": person(id=4)},
        {"segments": person(id=10**30)},
        {"segments": person(end=4)},
        {"segments": person(end=0)},
        {"segments": person(end=True)},
        {"segments": person(end=999)},
        {"segments": person(end=5.0)},
        {"segments": person(bbox=[1, 2, 3])},
        {"segments": person(bbox=[float("nan")] * 4)},
        {"segments": person(bbox=[9, 9, 2, 2])},
        {"caption": "!!! ... man", "segments": person(end=3)},
    ],
    ids=lambda changes: json.dumps(changes)[:60],
)
def test_a_json_that_makes_no_sense_costs_its_photo(changes: dict[str, Any], tmp_path: Path) -> None:
    write_root(tmp_path, 2)
    write_sample(tmp_path, "00000001", **changes)
    assert reasons(tmp_path) == ["", Reason.BAD_ANNOTATION]


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"caption": "x"}', " " * (1 << 22 | 1)], ids=len)
def test_a_json_that_is_none_costs_its_photo(text: str, tmp_path: Path) -> None:
    write_root(tmp_path, 2)
    (tmp_path / "00000/00000001.json").write_text(text)
    assert reasons(tmp_path)[1] in (Reason.BAD_ANNOTATION, Reason.EMPTY_FILE)


def _npy(array: np.ndarray, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", Reason.EMPTY_FILE),
        (b"no array", Reason.BAD_ANNOTATION),
        (_npy(np.zeros((32, 32))), Reason.BAD_ANNOTATION),
        (_npy(np.zeros((32, 32, 1), int)), Reason.BAD_ANNOTATION),
        (_npy(np.array([[{}]]), pickled=True), Reason.BAD_ANNOTATION),
        (_npy(np.full((32, 32), 3))[:-8], Reason.BAD_ANNOTATION),
        (_npy(np.full((32, 32), 3)).replace(b"(32, 32)", b"(10**9,)"), Reason.BAD_ANNOTATION),
        (_npy(np.full((16, 16), 3)).replace(b"(16, 16), }      ", b"(99999, 99999), }"), Reason.BAD_ANNOTATION),
        (_npy(np.full((16, 64), 3)), Reason.BAD_ANNOTATION),  # the boxes are not in it
        (_npy(np.full((40, 40), 3)), Reason.SIZE_MISMATCH),
    ],
)
def test_masks_that_make_no_sense_cost_their_photo(data: bytes, reason: Reason, tmp_path: Path) -> None:
    write_root(tmp_path, 2)
    write_sample(tmp_path, "00000001", segments=person())
    (tmp_path / "00000/00000001.npy").write_bytes(data)
    assert reasons(tmp_path) == ["", reason]


def test_a_folder_without_the_list_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_ids.txt"):
        open_source(f"fastcomposer:{tmp_path}")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "end", "bbox"]), inner),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "caption": values,
            "segments": values
            | st.lists(
                st.fixed_dictionaries(
                    {
                        "id": st.integers(0, 8),
                        "end": st.integers(-1, 40),
                        "bbox": st.lists(st.integers(0, 33), min_size=4, max_size=4),
                        "coco_label": st.sampled_from(["person", "dog"]),
                    }
                ),
                max_size=3,
            ),
        },
    )
)
@settings(max_examples=100)
def test_whatever_the_json_says_the_photo_is_kept_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    root = tmp_path_factory.mktemp("fastcomposer")
    write_root(root, 1)
    write_sample(root, "00000000", **changes)
    (reason,) = reasons(root)
    assert reason in ("", Reason.BAD_ANNOTATION)
