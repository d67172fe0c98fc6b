"""Our samples in FastComposer's format: an independent reader and our own source find in it what we put there."""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from preprocessing.catalog import ShardRow
from preprocessing.exporting import FastComposerExport
from preprocessing.ingesting import ingest_chunk
from preprocessing.shards import encode_instances, encode_json, read_tar, write_tar
from preprocessing.sources import open_source

CAPTIONS = ("a man beside a woman 😀", "on the beach a woman", "a boy, a boy and a girl")
WORDS = ((("man", 2), ("woman", 15)), (("woman", 15),), (("boy", 2), ("boy", 9), ("girl", 19)))
PIXELS = 32


def sample(number: int) -> tuple[str, dict[str, bytes]]:
    caption, words = CAPTIONS[number % 3], WORDS[number % 3]
    instances, subjects = np.zeros((PIXELS, PIXELS), np.uint8), []
    for instance, (word, start) in enumerate(words, start=1):
        left = 10 * instance - 9
        instances[3 + instance : 30, left : left + 8] = instance
        box = [float(left), float(3 + instance), float(left + 8), 30.0]
        subjects.append({"word": word, "start": start, "end": start + len(word), "instance": instance, "box": box})
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (PIXELS, PIXELS, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    about = {"caption": caption, "subjects": subjects, "license": "CC0", "author": f"A {number}", "origin": f"{number}"}
    about |= {"split": "validation" if number % 4 == 3 else "training", "source": "folder:x", "identity": None}
    return f"{number:04d}", {
        "jpg": buffer.getvalue(),
        "json": encode_json(about),
        "instances.png": encode_instances(instances),
    }


def shards(*counts: int) -> dict[str, tuple[ShardRow, bytes]]:
    made, first = {}, 0
    for index, count in enumerate(counts):
        tar = write_tar(sample(number) for number in range(first, first + count))
        name = f"{9 - index:016x}"  # not in the order in which they were made
        made[name] = ShardRow("shard", name, "f", f"{name}.tar", f"sha {index} {count}", count), tar
        first += count
    return made


def export(directory: Path, made: dict[str, tuple[ShardRow, bytes]]) -> FastComposerExport:
    work = FastComposerExport(directory, [row for row, _ in made.values()])
    for row in reversed(work.pending()):
        work.add(row, made[row.shard][1])
    work.finish()
    return work


class Independent:
    """The format as its description has it, and nothing of ours."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ids = (root / "image_ids.txt").read_text().split()
        self.train, self.test = ((root / f"image_ids_{one}.txt").read_text().split() for one in ("train", "test"))

    def sample(self, one: str) -> tuple[np.ndarray, str, list[dict[str, Any]]]:
        """The picture, the caption, and per segment its phrase, box, what the box cuts out, and mask."""
        assert one.isdigit()
        stem = self.root / one[:5] / one
        about = json.loads(stem.with_suffix(".json").read_text())
        ids = np.load(stem.with_suffix(".npy"), allow_pickle=False)
        assert ids.ndim == 2 and np.issubdtype(ids.dtype, np.integer)
        picture = np.asarray(Image.open(stem.with_suffix(".jpg")))
        assert picture.shape[:2] == ids.shape
        found = []
        for segment in about["segments"]:
            x1, y1, x2, y2 = segment["bbox"]
            mask = ids == segment["id"]
            cut = mask[y1:y2, x1:x2]
            found.append(
                {"phrase": about["caption"][: segment["end"]], "box": (x1, y1, x2, y2), "mask": mask, "cut": cut}
            )
            assert segment["coco_label"] == "person"
        return picture, about["caption"], found


def test_an_independent_reader_finds_captions_words_masks_and_boxes(tmp_path: Path) -> None:
    made = shards(3, 4, 2)
    export(tmp_path / "out", made)
    reader = Independent(tmp_path / "out")
    assert len(set(reader.ids)) == 9 and sorted(reader.train + reader.test) == reader.ids
    ours = [one for name in sorted(made) for one in read_tar(made[name][1])]
    for one, expected in zip(reader.ids, ours, strict=True):
        picture, caption, segments = reader.sample(one)
        about = expected.json()
        assert caption == about["caption"] and (one in reader.test) == (about["split"] == "validation")
        assert (picture == np.asarray(Image.open(io.BytesIO(expected.parts["jpg"])))).all()
        assert len(segments) == len(about["subjects"])
        instances = np.asarray(Image.open(io.BytesIO(expected.parts["instances.png"])))
        for segment, subject in zip(segments, about["subjects"], strict=True):
            assert segment["phrase"].endswith(subject["word"]) and len(segment["phrase"]) == subject["end"]
            assert list(segment["box"]) == subject["box"]
            assert (segment["mask"] == (instances == subject["instance"])).all()
            assert segment["cut"].all() and segment["cut"].sum() == segment["mask"].sum(), "the box is the mask's own"


def test_our_own_source_reads_it_back(tmp_path: Path) -> None:
    made = shards(3, 2)
    export(tmp_path / "out", made)
    records = list(open_source(f"fastcomposer:{tmp_path / 'out'}").records())
    limits = SimpleNamespace(pixels=PIXELS, min_side=8, max_pixels=10_000)
    result = ingest_chunk(records, set(), limits)
    assert result.tar is not None and len(result.keys) == 5
    assert {about["author"] for about in (one.json() for one in read_tar(result.tar))} == {f"A {k}" for k in range(5)}
    assert all(one.json()["license"] == "CC0" and one.json()["identity"] is None for one in read_tar(result.tar))
    back = {about["prepared"]["caption"]: about["prepared"] for about in (one.json() for one in read_tar(result.tar))}
    for caption, words in zip(CAPTIONS, WORDS, strict=True):
        assert [(one["word"], one["start"]) for one in back[caption]["binding"]] == list(words)
        assert [person["box"][0] for person in back[caption]["people"]] == [10 * k + 1 for k in range(len(words))]


def test_licence_and_author_travel_along(tmp_path: Path) -> None:
    export(tmp_path / "out", shards(2))
    about = json.loads((tmp_path / "out/00000/00000001.json").read_text())
    assert (about["license"], about["author"], about["origin"]) == ("CC0", "A 1", "1") and "identity" not in about


def _files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_killed_export_goes_on_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    made = shards(2, 3, 1)
    export(tmp_path / "whole", made)
    older = FastComposerExport(tmp_path / "out", [row for row, _ in shards(1).values()])
    assert older.pending()  # it was begun before the catalog grew, and killed
    work = FastComposerExport(tmp_path / "out", [row for row, _ in made.values()])
    first, second, _ = work.pending()
    work.add(first, made[first.shard][1])
    with pytest.raises(ValueError):  # in the middle of the second
        work.add(second, made[second.shard][1][:3000])
    assert not (tmp_path / "out").exists(), "nothing is there before all is"
    again = FastComposerExport(tmp_path / "out", [row for row, _ in made.values()])
    assert [row.shard for row in again.pending()] == [row.shard for row in work.shards[1:]]
    for row in again.pending():
        again.add(row, made[row.shard][1])
    again.finish()
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_repeat_writes_nothing_and_another_content_is_refused(tmp_path: Path) -> None:
    made = shards(2)
    export(tmp_path / "out", made)
    before = (tmp_path / "out/image_ids.txt").stat().st_mtime_ns
    again = export(tmp_path / "out", made)
    assert again.finished and again.pending() == [] and (tmp_path / "out/image_ids.txt").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="something else"):
        FastComposerExport(tmp_path / "out", [row for row, _ in shards(3).values()])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="something else"):
        FastComposerExport(tmp_path / "file", [row for row, _ in made.values()])
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "empty", made).finished


def test_a_shard_that_is_not_what_the_catalog_says_ends_the_export(tmp_path: Path) -> None:
    ((row, tar),) = shards(2).values()
    wrong = ShardRow(row.stage, row.shard, row.fingerprint, row.object_key, row.sha256, 5)
    work = FastComposerExport(tmp_path / "out", [wrong])
    work.pending()
    with pytest.raises(ValueError, match="the catalog says 5"):
        work.add(wrong, tar)
