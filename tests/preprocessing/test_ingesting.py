"""Whole chunks: what is kept, what is refused and why, and that the counts add up."""

import dataclasses
import hashlib
import io
import os
import random
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from infra.s3_reading import S3Object
from preprocessing import ingesting
from preprocessing.catalog import KEPT, REFUSED
from preprocessing.faces import Face
from preprocessing.ingesting import IngestedChunk, chunk, ingest_chunk, shard_name
from preprocessing.photos import Reason
from preprocessing.shards import read_tar
from preprocessing.sources import Record, open_source

LIMITS = SimpleNamespace(pixels=32, min_side=16, max_pixels=1_000_000)


def photo(number: int, kind: str = "PNG", size: tuple[int, int] = (40, 48)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(buffer, kind)
    return buffer.getvalue()


def ingest(root: Path, known: Iterable[str] = ()) -> IngestedChunk:
    return ingest_chunk(list(open_source(f"folder:{root}").records()), set(known), LIMITS)


def fill(root: Path) -> dict[str, Reason | None]:
    """A folder with every kind of bad input, and what has to become of each."""
    jpeg = photo(1, "JPEG", (320, 320))
    files = {
        "01_good.jpg": (photo(2, "JPEG"), None),
        "02_empty.jpg": (b"", Reason.EMPTY_FILE),
        "03_truncated.jpg": (jpeg[: len(jpeg) // 2], Reason.TRUNCATED),
        "04_text.jpg": (b"not a picture at all\n", Reason.NOT_AN_IMAGE),
        "05_one_pixel.png": (_saved(Image.new("RGB", (1, 1)), "PNG"), Reason.TOO_SMALL),
        "06_again.jpg": (photo(2, "JPEG"), Reason.DUPLICATE),
        "07_grey.png": (_grey16(), None),
        "08_palette.gif": (_saved(Image.open(io.BytesIO(photo(5))).convert("P"), "GIF"), None),
        "09_cmyk.jpg": (_saved(Image.open(io.BytesIO(photo(6))).convert("CMYK"), "JPEG"), None),
        "10_png_named.jpg": (photo(7), None),
        "11_large.png": (photo(8, size=(1600, 800)), Reason.TOO_LARGE),
        "12_moving.gif": (_moving(), Reason.ANIMATED),
    }
    for name, (data, _) in files.items():
        (root / name).write_bytes(data)
    (root / "13_folder.jpg").mkdir()
    (root / "14_link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(root / "15_pipe.jpg")
    (root / "16_device.jpg").symlink_to("/dev/urandom")
    (root / "17_memory.jpg").symlink_to("/proc/self/mem")
    expected = {name: reason for name, (_, reason) in files.items()}
    return expected | {
        "13_folder.jpg": Reason.NOT_A_FILE,
        "14_link.jpg": Reason.BROKEN_LINK,
        "15_pipe.jpg": Reason.NOT_A_FILE,
        "16_device.jpg": Reason.NOT_A_FILE,
        "17_memory.jpg": Reason.UNREADABLE,
    }


def test_every_bad_input_costs_itself_only(tmp_path: Path) -> None:
    expected = fill(tmp_path)
    result = ingest(tmp_path)
    assert {row.origin: row.reason or None for row in result.rows} == expected
    for row in result.rows:
        assert row.stage == "ingest" and row.status == (KEPT if expected[row.origin] is None else REFUSED)
        assert bool(row.detail) == (row.status == REFUSED)
        assert row.shard == (result.shard_id if row.status == KEPT else "")
    assert result.tar is not None
    samples = list(read_tar(result.tar))
    assert (
        [sample.key for sample in samples]
        == result.keys
        == sorted(row.key for row in result.rows if row.status == KEPT)
    )
    for sample in samples:
        with Image.open(io.BytesIO(sample.parts["jpg"])) as image:
            assert image.size == (32, 32) and image.mode == "RGB"


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    fill(tmp_path)
    assert ingest(tmp_path) == ingest(tmp_path)


def test_a_key_is_the_digest_of_the_files_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1))
    result = ingest(tmp_path)
    assert result.keys == [hashlib.sha256(photo(1)).hexdigest()]
    assert result.shard_id == shard_name(result.keys) == hashlib.sha256(result.keys[0].encode()).hexdigest()[:16]


def test_what_is_known_is_a_duplicate(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    first = ingest(tmp_path)
    again = ingest(tmp_path, known=[first.keys[0]])
    assert Counter(row.reason for row in again.rows) == {"": 1, Reason.DUPLICATE: 1}
    nothing = ingest(tmp_path, known=first.keys)
    assert (nothing.shard_id, nothing.tar) == ("", None)
    assert [row.key in first.keys for row in nothing.rows] == [True, True]


def test_a_refused_twin_does_not_take_the_others_place(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1))
    wrong = Record("s", "wrong", tmp_path / "a.png", md5="0" * 32)
    right = Record("s", "right", tmp_path / "a.png")
    rows = ingest_chunk([wrong, right, right], set(), LIMITS).rows
    assert [row.reason for row in rows] == [Reason.CHECKSUM_MISMATCH, "", Reason.DUPLICATE]


def test_what_the_lists_say_is_checked(tmp_path: Path) -> None:
    data = photo(1)
    (tmp_path / "a.png").write_bytes(data)
    md5 = hashlib.md5(data).hexdigest()

    def reason(**listed: object) -> str:
        (row,) = ingest_chunk([Record("s", "a", tmp_path / "a.png", **listed)], set(), LIMITS).rows  # type: ignore[arg-type]
        return row.reason

    assert reason(md5=md5, size=len(data), pixels=(40, 48)) == ""
    assert reason(md5="0" * 32, size=len(data)) == Reason.CHECKSUM_MISMATCH
    assert reason(md5=md5, size=len(data) + 1) == Reason.SIZE_MISMATCH
    assert reason(md5=md5, pixels=(48, 40)) == Reason.SIZE_MISMATCH
    assert reason(problem=(Reason.MISSING_ANNOTATION, "no line")) == Reason.MISSING_ANNOTATION


def test_the_sources_knowledge_travels_with_the_photo(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1, size=(40, 80)))
    face = Face((10, 60, 20, 70), ((15, 65),))
    record = Record("s", "a", tmp_path / "a.png", "CC0", "me", "7", "woman", "test", faces=(face,))
    result = ingest_chunk([record], set(), LIMITS, detector=_Finder())
    assert result.tar is not None
    (sample,) = read_tar(result.tar)
    description = sample.json()
    assert {
        name: description[name] for name in ("source", "origin", "license", "author", "identity", "word", "split")
    } == {
        "source": "s",
        "origin": "a",
        "license": "CC0",
        "author": "me",
        "identity": "7",
        "word": "woman",
        "split": "test",
    }
    assert description["size"] == [40, 80] and description["crop"] == [0, 40, 40, 80]
    (moved,) = (Face.from_json(one) for one in description["faces"])
    assert moved.box == pytest.approx((8, 16, 16, 24)) and moved.landmarks[0] == pytest.approx((12, 20))


class _Finder:
    """Says that every photo holds one face, high on the left."""

    def detect(self, image: Image.Image) -> list[Face]:
        assert image.mode == "RGB"
        return [Face((2, 2, 12, 12), score=0.9)]


def test_the_detector_is_asked_only_where_the_source_does_not_know(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(photo(number))
    records = [Record("s", "0", tmp_path / "0.png", faces=()), Record("s", "1", tmp_path / "1.png", faces=None)]
    result = ingest_chunk(records, set(), LIMITS, detector=_Finder())
    assert result.tar is not None
    assert sorted(len(sample.json()["faces"]) for sample in read_tar(result.tar)) == [0, 1]


def test_photos_on_an_object_store_are_read_ahead_of_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second's read ends only when the fifth's has begun, and the rest begin only when the first are through."""
    files = {f"{number}.png": photo(number) for number in range(12)}
    records = [Record("there", name, S3Object("bucket", name, len(data), "e")) for name, data in files.items()]
    records[3] = dataclasses.replace(records[3], problem=(Reason.FORGOTTEN, "asked on 3 May"))
    begun, fifth, most = set[str](), threading.Event(), list[int]()

    def read(place: S3Object) -> bytes:
        begun.add(place.key)
        if place.key == "5.png":
            fifth.set()
        if place.key == "1.png":
            assert fifth.wait(timeout=30)
            most.append(len(begun))
        return files[place.key]

    monkeypatch.setattr(ingesting, "read_bytes", read)
    chunk = ingest_chunk(records, set(), LIMITS)
    assert len(chunk.keys) == 11 and "3.png" not in begun
    assert most[0] <= 6, "the whole chunk's bytes would be in memory"


@given(st.integers(0, 40), st.integers(1, 12))
@settings(max_examples=50)
def test_chunks_are_consecutive_and_complete(count: int, size: int) -> None:
    records = [Record("s", str(number), Path("x")) for number in range(count)]
    chunks = list(chunk(iter(records), size))
    assert [record for one in chunks for record in one] == records
    assert all(len(one) == size for one in chunks[:-1]) and all(chunks)


def test_a_chunk_needs_room() -> None:
    with pytest.raises(ValueError):
        list(chunk([], 0))


@given(st.lists(st.integers(0, 9), max_size=14), st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=40)
def test_the_counts_add_up(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[int], seed: int, per_shard: int
) -> None:
    """Any mixture of photos, repeats, damaged files and things that are no files, in chunks of any size."""
    root = tmp_path_factory.mktemp("mixture")
    chance = random.Random(seed)
    for place, kind in enumerate(kinds):
        path = root / f"{place:02d}.png"
        data = bytearray(photo(chance.randrange(4), chance.choice(["PNG", "JPEG", "GIF", "WEBP"])))
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            path.symlink_to("gone")
        elif kind == 2:
            path.write_bytes(b"")
        elif kind == 3:
            path.write_bytes(data[: chance.randrange(len(data))])
        elif kind == 4:
            for _ in range(5):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(data)
        else:
            path.write_bytes(data)
    known: set[str] = set()
    rows, samples = [], []
    for records in chunk(open_source(f"folder:{root}").records(), per_shard):
        result = ingest_chunk(records, known, LIMITS)
        assert [row.origin for row in result.rows] == [record.origin for record in records]
        assert known.isdisjoint(result.keys)
        known.update(result.keys)
        rows += result.rows
        samples += [sample.key for sample in read_tar(result.tar)] if result.tar is not None else []
    kept = [row.key for row in rows if row.status == KEPT]
    refused = Counter(Reason(row.reason) for row in rows if row.status == REFUSED)
    assert len(rows) == len(kinds) == len(kept) + refused.total()
    assert sorted(kept) == sorted(samples) and len(set(kept)) == len(kept)
    # However the photos fall into chunks, the same ones are kept.
    assert set(kept) == set(ingest(root).keys)


def _saved(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _grey16() -> bytes:
    return _saved(Image.fromarray(np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)), "PNG")


def _moving() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.open(io.BytesIO(photo(number))) for number in (10, 11)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()
