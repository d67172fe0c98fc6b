"""Shard in, shard out, with the real classes; one bad photo costs one row; a repeat gives the same bytes."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from infra.settings import CaptionSettings, ModelReference, SegmentSettings, ShardSettings, load_settings
from preprocessing.batching import Steps
from preprocessing.captioning import open_captioner
from preprocessing.catalog import PhotoRow, ShardRow
from preprocessing.columns import COLUMNS, wanted_columns
from preprocessing.exporting import FastComposerExport
from preprocessing.photos import Crop
from preprocessing.precompute import Precomputer
from preprocessing.prepared import Prepared, PreparedSubject
from preprocessing.recipes import stage_recipe
from preprocessing.segmentation import People, Person, open_segmenter
from preprocessing.shards import decode_instances, decode_npy, encode_instances, encode_json, read_tar, write_tar
from preprocessing.sources import open_source
from preprocessing.stages import bind_shard, build_shard, caption_shard, faces_of, segment_shard
from tests.tiny_models import tiny_blip2, tiny_clip, tiny_mask2former, tiny_pipeline

CAPTION = CaptionSettings(batch_size=2, max_new_tokens=5, num_beams=1, workers=1)
SEGMENT = SegmentSettings(
    score_threshold=0.0,  # random weights are never sure
    mask_threshold=0.5,
    overlap_threshold=0.0,
    min_area=0.0,
    face_fallback=True,
    batch_size=2,
    workers=1,
)
SHARD = ShardSettings(
    reference_pixels=32,
    reference_variants=4,
    augmentation=load_settings("demo").shard.augmentation,
    moments=True,
    text=True,
    image_embeds=True,
    max_photos=100,
    max_bytes=10**9,
    batch_size=2,
    workers=1,
)


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def ingested(count: int = 3, faces: Sequence[dict[str, object]] = ()) -> bytes:
    return write_tar(
        (
            f"key{i}",
            {
                "jpg": photo(i),
                "json": encode_json(
                    {"source": "folder", "origin": f"{i}.jpg", "license": "CC0", "author": "A", "faces": list(faces)}
                ),
            },
        )
        for i in range(count)
    )


def captions(*texts: str) -> bytes:
    return write_tar((f"key{i}", {"json": encode_json({"caption": text})}) for i, text in enumerate(texts) if text)


def segments(*people: int) -> bytes:
    """Photo i shows people[i] persons, side by side."""
    written = []
    for i, count in enumerate(people):
        instances, records = np.zeros((32, 32), np.uint8), []
        for number in range(1, count + 1):
            x = 10 * (number - 1) + 1
            instances[4:30, x : x + 9] = number
            records.append(Person(number, 0.9, (x, 4, x + 9, 30), 234 / 1024).record())
        about = {"mask_source": "model", "people": records}
        written.append((f"key{i}", {"json": encode_json(about), "instances.png": encode_instances(instances)}))
    return write_tar(written)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_pipeline(folder=root / "base")
    tiny_clip(folder=root / "clip")
    tiny_blip2(root / "captioner")
    tiny_mask2former(root / "segmenter")
    return root


@pytest.fixture(scope="module")
def precomputer(models: Path) -> Precomputer:
    base = ModelReference(location=str(models / "base"), backend="diffusers")
    return Precomputer(base, ModelReference(location=str(models / "clip")), SHARD)


def shard_of(
    ingest: bytes,
    captions: bytes,
    segments: bytes,
    precomputer: Precomputer,
    settings: ShardSettings = SHARD,
    shard: str = "",
) -> tuple[bytes, list[PhotoRow]]:
    """All that the shard stage does, where one training shard comes out."""
    bound = bind_shard(ingest, captions, segments, precomputer)
    columns = {name: COLUMNS[name](ingest, bound, precomputer, settings) for name in wanted_columns(settings)}
    (samples,), rows = build_shard(ingest, bound, columns, settings, shard)
    return write_tar(samples), rows


def test_three_stages_one_after_the_other(models: Path, precomputer: Precomputer) -> None:
    captioner = open_captioner(ModelReference(location=str(models / "captioner")), CAPTION)
    segmenter = open_segmenter(ModelReference(location=str(models / "segmenter")), SEGMENT)
    tar = ingested()

    def run() -> tuple[bytes, bytes, bytes, int]:
        captioned, refused = caption_shard(tar, captioner, CAPTION, "s")
        segmented, nobody = segment_shard(tar, segmenter, SEGMENT, "s")
        built, unbound = shard_of(tar, captioned, segmented, precomputer, SHARD, "s")
        return captioned, segmented, built, len({row.key for row in [*refused, *nobody, *unbound]})

    captioned, segmented, built, refused = run()
    assert len(list(read_tar(captioned))) == 3
    assert len(list(read_tar(built))) + refused == 3 and list(read_tar(built))
    assert run() == (captioned, segmented, built, refused)


def test_a_training_sample_holds_everything(precomputer: Precomputer) -> None:
    face = {"box": [13, 6, 17, 12], "landmarks": [], "score": 1.0}
    tar, rows = shard_of(
        ingested(1, [face]), captions("a man beside a man on the beach"), segments(2), precomputer, SHARD
    )
    assert rows == []
    (sample,) = read_tar(tar)
    assert sorted(sample.parts) == ["image_embeds.npy", "instances.png", "jpg", "json", "moments.npy", "text.npy"]
    about = sample.json()
    assert (about["license"], about["origin"], about["mask_source"]) == ("CC0", "0.jpg", "model")
    left, right = about["subjects"]
    assert (left["word"], left["start"], left["end"], left["instance"]) == ("man", 2, 5, 1)
    assert left["token"] == 2 and right["token"] > left["token"]
    assert (left["face"], right["face"]) == (None, face)
    assert left["box"] == [1, 4, 10, 30] and left["score"] == 0.9
    assert sample.parts["jpg"] == photo(0)
    assert set(np.unique(decode_instances(sample.parts["instances.png"]))) == {0, 1, 2}
    shapes = {name: decode_npy(sample.parts[f"{name}.npy"]) for name in ("moments", "text", "image_embeds")}
    assert {name: array.shape for name, array in shapes.items()} == {
        "moments": (8, 8, 8),
        "text": (32, 16),
        "image_embeds": (2, 4, 12),
    }
    assert all(array.dtype == np.float16 for array in shapes.values())


def test_different_words_are_bound_too(precomputer: Precomputer) -> None:
    tar, rows = shard_of(ingested(1), captions("a man and a woman"), segments(2), precomputer, SHARD)
    (sample,) = read_tar(tar)
    assert rows == [] and [subject["instance"] for subject in sample.json()["subjects"]] == [1, 2]


def test_whom_one_word_names_is_bound_without_decoding(precomputer: Precomputer) -> None:
    samples = [(sample.key, dict(sample.parts)) for sample in read_tar(ingested(2))]
    for _, parts in samples:
        parts["jpg"] = parts["jpg"][:-200]
    told = captions("a man", "a man and a woman")
    one, two = read_tar(bind_shard(write_tar(samples), told, segments(1, 2), precomputer))
    assert [subject["word"] for subject in one.json()["subjects"]] == ["man"]
    assert two.json()["refused"] == "model_failed"


def test_people_whom_no_word_names_are_background(precomputer: Precomputer) -> None:
    tar, _ = shard_of(ingested(1), captions("a man"), segments(2), precomputer, SHARD)
    (sample,) = read_tar(tar)
    assert [subject["instance"] for subject in sample.json()["subjects"]] == [1]
    assert set(np.unique(decode_instances(sample.parts["instances.png"]))) == {0, 1}


def test_a_caption_without_people_and_a_word_beyond_the_prompt_are_refused(precomputer: Precomputer) -> None:
    texts = captions("a man", "an empty beach", "x " * 40 + "man")
    tar, rows = shard_of(ingested(), texts, segments(1, 1, 1), precomputer, SHARD, "s")
    assert [sample.key for sample in read_tar(tar)] == ["key0"]
    assert [(row.key, row.reason, row.shard, row.origin) for row in rows] == [
        ("key1", "no_person_word", "s", "1.jpg"),
        ("key2", "no_person_word", "s", "2.jpg"),
    ]
    assert rows[0].detail == "caption: an empty beach"


def test_photos_refused_before_are_passed_over(precomputer: Precomputer) -> None:
    tar, rows = shard_of(ingested(), captions("a man", "", "a man"), segments(1, 1), precomputer, SHARD)
    assert [sample.key for sample in read_tar(tar)] == ["key0"] and rows == []


def test_batches_do_not_change_what_a_photo_becomes(precomputer: Precomputer) -> None:
    parts = captions("a man", "a man and a man", "a woman"), segments(1, 2, 1)
    together, _ = shard_of(ingested(), *parts, precomputer, SHARD.model_copy(update={"batch_size": 3}))
    alone, _ = shard_of(ingested(), *parts, precomputer, SHARD.model_copy(update={"batch_size": 1}))
    for one, other in zip(read_tar(together), read_tar(alone), strict=True):
        assert one.json() == other.json()
        for name in ("moments.npy", "text.npy", "image_embeds.npy"):
            np.testing.assert_allclose(decode_npy(one.parts[name]), decode_npy(other.parts[name]), atol=5e-3)


class Fussy:
    """Cannot stand some pictures; `bad` looks at the first pixel."""

    def __init__(self, bad: Callable[[object], bool], error: type[Exception] = RuntimeError) -> None:
        self.bad, self.error = bad, error

    def _check(self, images: Sequence[Image.Image]) -> None:
        for image in images:
            if self.bad(image.getpixel((0, 0))):
                raise self.error("no,\n not this one")


class FussyCaptioner(Fussy):
    @property
    def steps(self) -> Steps[Image.Image, str]:
        return Steps(self.caption)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        self._check(images)
        return ["a man"] * len(images)


class FussySegmenter(Fussy):
    @property
    def steps(self) -> Steps[Image.Image, People]:
        return Steps(self.segment)

    def segment(self, images: Sequence[Image.Image]) -> list[People]:
        self._check(images)
        return [People(np.zeros((image.height, image.width), np.uint8), ()) for image in images]


def test_one_bad_photo_costs_one_row() -> None:
    tar = ingested(5)
    pixel = Image.open(io.BytesIO(photo(1))).getpixel((0, 0))
    captioned, rows = caption_shard(tar, FussyCaptioner(lambda other: other == pixel), CAPTION, "s")
    assert [sample.key for sample in read_tar(captioned)] == ["key0", "key2", "key3", "key4"]
    assert [(row.stage, row.key, row.status, row.reason) for row in rows] == [
        ("caption", "key1", "refused", "model_failed")
    ]
    assert rows[0].detail == "RuntimeError: no, not this one"


def test_a_damaged_picture_inside_a_shard_costs_one_row(precomputer: Precomputer) -> None:
    samples = [(sample.key, dict(sample.parts)) for sample in read_tar(ingested())]
    samples[1][1]["jpg"] = samples[1][1]["jpg"][:300]
    tar = write_tar(samples)
    captioned, rows = caption_shard(tar, FussyCaptioner(lambda pixel: False), CAPTION)
    assert [row.key for row in rows] == ["key1"] and len(list(read_tar(captioned))) == 2
    built, rows = shard_of(tar, captions(*["a man"] * 3), segments(1, 1, 1), precomputer, SHARD)
    assert [row.key for row in rows] == ["key1"] and len(list(read_tar(built))) == 2


def test_a_model_that_fails_on_everything_is_not_the_photos_fault() -> None:
    with pytest.raises(RuntimeError, match="not this one"):
        caption_shard(ingested(), FussyCaptioner(lambda pixel: True), CAPTION)
    with pytest.raises(UserError):
        caption_shard(ingested(1), FussyCaptioner(lambda pixel: True, UserError), CAPTION)


def test_nobody_found_falls_back_on_faces() -> None:
    nobody = FussySegmenter(lambda pixel: False)
    tar, rows = segment_shard(ingested(2), nobody, SEGMENT, "s")
    assert list(read_tar(tar)) == [] and [row.reason for row in rows] == ["no_person", "no_person"]
    face = {"box": [12, 6, 20, 15], "landmarks": [], "score": 0.99}
    tar, rows = segment_shard(ingested(2, [face]), nobody, SEGMENT, "s")
    first, _ = read_tar(tar)
    assert rows == [] and first.json()["mask_source"] == "face_box"
    assert decode_instances(first.parts["instances.png"])[10, 16] == 1
    without = SEGMENT.model_copy(update={"face_fallback": False})
    assert len(segment_shard(ingested(2, [face]), nobody, without)[1]) == 2


def test_an_empty_shard_stays_empty(precomputer: Precomputer) -> None:
    empty = write_tar([])
    assert caption_shard(empty, FussyCaptioner(lambda pixel: True), CAPTION) == (empty, [])
    assert shard_of(empty, empty, empty, precomputer, SHARD) == (empty, [])


def test_the_largest_face_on_a_mask_is_the_persons() -> None:
    instances = np.zeros((32, 32), np.uint8)
    instances[:, 16:] = 1
    small, large = {"box": [20, 1, 22, 3]}, {"box": [18, 8, 28, 20]}
    faces = [large, small, {"box": [1, 1, 5, 5]}, {"box": [30, 30, 99, 99]}]
    assert faces_of(People(instances, ()), faces) == {1: large}


def test_fingerprints_follow_what_changes_the_bytes() -> None:
    def named(changes: dict[str, int], model: str) -> str:
        settings = CAPTION.model_copy(update=changes)
        return stage_recipe("caption", settings, {"models.captioner": model}).fingerprint

    first = named({}, "model")
    assert len(first) == 16
    assert first == named({"workers": 9}, "model")
    assert first != named({"num_beams": 5}, "model")
    assert first != named({}, "other")


def _never(_: object) -> NoReturn:
    raise AssertionError("a model was asked about a photo that came with what it would say")


class _NeverAskedCaptioner:
    steps: Steps[Image.Image, str] = Steps(_never, _never)

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        _never(images)


class _NeverAskedSegmenter:
    steps: Steps[Image.Image, People] = Steps(_never, _never)

    def segment(self, images: Sequence[Image.Image]) -> list[People]:
        _never(images)


def test_what_a_source_prepared_goes_through_without_a_model(precomputer: Precomputer, tmp_path: Path) -> None:
    ids = np.zeros((32, 32), np.int64)
    ids[4:30, 1:10], ids[4:30, 20:30] = 900, -3
    caption = "the tall one and a woman"
    prepared = Prepared(caption, (PreparedSubject(-3, 9, 12), PreparedSubject(900, 19, 24)), ids)
    about, instances = prepared.cropped(Crop(0, 0, 32, 32), (32, 32))
    face = {"box": [22, 6, 26, 12], "landmarks": [], "score": 1.0}
    json = {"source": "fastcomposer", "origin": "0.jpg", "faces": [face], "prepared": about}
    parts = {"jpg": photo(0), "json": encode_json(json), "instances.png": instances}
    tar = write_tar([("key0", parts)])
    captioned, refused = caption_shard(tar, _NeverAskedCaptioner(), CAPTION)
    segmented, nobody = segment_shard(tar, _NeverAskedSegmenter(), SEGMENT)
    assert refused == nobody == []
    built, rows = shard_of(tar, captioned, segmented, precomputer)
    assert rows == []
    (sample,) = read_tar(built)
    found = sample.json()
    assert found["caption"] == caption and found["mask_source"] == "source"
    # "one" is no word for a person to our own binding: it is the source's that counts.
    assert [(one["word"], one["box"], one["face"]) for one in found["subjects"]] == [
        ("one", [20, 4, 30, 30], face),
        ("woman", [1, 4, 10, 30], None),
    ]
    map_of_subjects = decode_instances(sample.parts["instances.png"])
    assert map_of_subjects[10, 25] == 1 and map_of_subjects[10, 5] == 2 and map_of_subjects[0, 0] == 0

    # Exported again, it says what it said when it came.
    export = FastComposerExport(tmp_path / "out", [ShardRow("shard", "s", "f", "s.tar", "sha", 1)])
    for row in export.pending():
        export.add(row, built)
    export.finish()
    (record,) = open_source(f"fastcomposer:{tmp_path / 'out'}").records()
    assert record.beside is not None
    back = record.beside.describe(record).prepared
    assert back is not None and back.caption == caption
    assert [(one.start, one.end) for one in back.subjects] == [(9, 12), (19, 24)]
    assert ((back.ids == back.subjects[0].id) == (ids == -3)).all() and (
        (back.ids == back.subjects[1].id) == (ids == 900)
    ).all()


def test_prepared_photos_and_others_share_a_shard(models: Path) -> None:
    captioner = open_captioner(ModelReference(location=str(models / "captioner")), CAPTION)
    others = {sample.key: dict(sample.parts) for sample in read_tar(ingested(3))}
    alone = {sample.key: sample.json() for sample in read_tar(caption_shard(ingested(3), captioner, CAPTION)[0])}
    json = {
        "source": "s",
        "origin": "1.jpg",
        "faces": [],
        "prepared": {"caption": "given", "people": [], "binding": []},
    }
    others["key1"]["json"] = encode_json(json)
    captioned = {
        sample.key: sample.json()
        for sample in read_tar(caption_shard(write_tar(others.items()), captioner, CAPTION)[0])
    }
    assert captioned == alone | {"key1": {"caption": "given"}}
