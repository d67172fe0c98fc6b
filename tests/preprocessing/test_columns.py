"""Columns of the shard stage: each reads what it depends on, and a photo that fails in one costs itself."""

from pathlib import Path

import numpy as np
import pytest

from infra.settings import ModelReference
from preprocessing.augmentation import sample_crops
from preprocessing.columns import COLUMNS, image_embeds_column, moments_column, text_column, wanted_columns
from preprocessing.precompute import Precomputer
from preprocessing.shards import decode_instances, decode_npy, decode_picture, read_tar, write_tar
from preprocessing.stages import bind_shard, build_shard
from tests.preprocessing.test_stages import SHARD, captions, ingested, segments
from tests.sdxl_models import write_sdxl_base
from tests.tiny_models import tiny_clip, tiny_pipeline


@pytest.fixture(scope="module")
def precomputer(tmp_path_factory: pytest.TempPathFactory) -> Precomputer:
    root = tmp_path_factory.mktemp("models")
    tiny_pipeline(folder=root / "base")
    tiny_clip(folder=root / "clip")
    base = ModelReference(location=str(root / "base"), backend="diffusers")
    return Precomputer(base, ModelReference(location=str(root / "clip")), SHARD)


@pytest.fixture(scope="module")
def bound(precomputer: Precomputer) -> bytes:
    """Three photos: two subjects, nobody named, one subject."""
    texts = captions("a man and a man", "a beach", "a woman")
    return bind_shard(ingested(), texts, segments(2, 1, 1), precomputer)


def arrays(tar: bytes, name: str) -> dict[str, np.ndarray]:
    return {sample.key: decode_npy(sample.parts[f"{name}.npy"]) for sample in read_tar(tar)}


def test_moments_are_those_of_every_ingested_photo(precomputer: Precomputer, bound: bytes) -> None:
    tar = moments_column(ingested(), bound, precomputer, SHARD)
    made = arrays(tar, "moments")
    assert list(made) == ["key0", "key1", "key2"]
    pictures = [decode_picture(sample.parts["jpg"]) for sample in read_tar(ingested())]
    np.testing.assert_array_equal(made["key1"], precomputer.moments(pictures[:2])[1])
    assert tar == moments_column(ingested(), write_tar([]), precomputer, SHARD)  # whoever is bound


def test_text_is_that_of_the_bound_captions(precomputer: Precomputer, bound: bytes) -> None:
    made = arrays(text_column(write_tar([]), bound, precomputer, SHARD), "text")
    assert list(made) == ["key0", "key2"]
    np.testing.assert_array_equal(made["key2"], precomputer.text(["a man and a man", "a woman"]).states[1])


def test_sdxls_text_brings_its_pooled_text_into_the_training_shard(tmp_path: Path, bound: bytes) -> None:
    tiny_clip(folder=tmp_path / "clip")
    base = ModelReference(location=str(write_sdxl_base(tmp_path / "base")), backend="diffusers")
    sdxl = Precomputer(base, ModelReference(location=str(tmp_path / "clip")), SHARD)
    tar = text_column(write_tar([]), bound, sdxl, SHARD)
    text, pooled = arrays(tar, "text"), arrays(tar, "pooled")
    assert list(text) == list(pooled) == ["key0", "key2"]
    expected = sdxl.text(["a man and a man", "a woman"])
    np.testing.assert_array_equal(text["key2"], expected.states[1])
    np.testing.assert_array_equal(pooled["key2"], expected.pooled[1])
    (built,), _ = build_shard(ingested(), bound, {"text": tar}, SHARD)
    assert {tuple(sorted(parts)) for _, parts in built} == {
        ("instances.png", "jpg", "json", "pooled.npy", "text.npy"),
    }


def test_image_embeds_are_those_of_every_subject(precomputer: Precomputer, bound: bytes) -> None:
    made = arrays(image_embeds_column(ingested(), bound, precomputer, SHARD), "image_embeds")
    assert {key: array.shape[:2] for key, array in made.items()} == {"key0": (2, 4), "key2": (1, 4)}
    sample = next(sample for sample in read_tar(bound) if sample.key == "key2")
    picture = decode_picture(next(one for one in read_tar(ingested()) if one.key == "key2").parts["jpg"])
    instances = decode_instances(sample.parts["instances.png"])
    crops = sample_crops(picture, instances, sample.json()["subjects"], SHARD, "key2")
    np.testing.assert_allclose(made["key2"][0], precomputer.image_embeds(crops), atol=5e-3)


def test_a_photo_that_fails_in_a_column_is_refused_when_joining(precomputer: Precomputer, bound: bytes) -> None:
    samples = [(sample.key, dict(sample.parts)) for sample in read_tar(ingested())]
    samples[2][1]["jpg"] = b"no picture"
    tar = write_tar(samples)
    columns = {name: COLUMNS[name](tar, bound, precomputer, SHARD) for name in COLUMNS}
    (built,), rows = build_shard(tar, bound, columns, SHARD, "s")
    assert [key for key, _ in built] == ["key0"]
    assert [(row.key, row.stage, row.shard, row.reason) for row in rows] == [
        ("key1", "shard", "s", "no_person_word"),
        ("key2", "shard", "s", "model_failed"),
    ]
    assert rows[0].detail == "caption: a beach" and "cannot identify" in rows[1].detail


def test_columns_that_are_switched_off_are_left_out(precomputer: Precomputer, bound: bytes) -> None:
    settings = SHARD.model_copy(update={"moments": False, "text": False})
    assert wanted_columns(SHARD) == ("moments", "text", "image_embeds") and wanted_columns(settings) == (
        "image_embeds",
    )
    columns = {name: COLUMNS[name](ingested(), bound, precomputer, settings) for name in wanted_columns(settings)}
    (built,), _ = build_shard(ingested(), bound, columns, settings)
    assert {tuple(sorted(parts)) for _, parts in built} == {("image_embeds.npy", "instances.png", "jpg", "json")}
    (bare,), rows = build_shard(ingested(), bound, {}, settings)
    assert len(bare) == 2 and len(rows) == 1
