"""A dataset version, read back by the three libraries that people read webdatasets with: pictures, json and arrays."""

import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.storage import DirectoryStore
from preprocessing.catalog import ShardRow, store_shard
from preprocessing.dataset_index import dataset_index, index_key, store_index
from preprocessing.shards import encode_instances, encode_json, encode_npy, read_tar, write_tar


@dataclass(frozen=True)
class Dataset:
    """Two training shards and their index in a store, and what they hold."""

    store: DirectoryStore
    rows: list[ShardRow]
    index: Path
    samples: dict[str, dict[str, bytes]]

    @property
    def tars(self) -> list[str]:
        return [self.store.uri(row.object_key) for row in self.rows]


def training_sample(number: int) -> dict[str, bytes]:
    """A sample with every part that a training sample has, of small sizes."""
    stream = np.random.default_rng(number)
    jpeg = io.BytesIO()
    Image.fromarray(stream.integers(0, 255, (16, 16, 3), np.uint8)).save(jpeg, "JPEG", quality=95)
    instances = np.zeros((16, 16), np.uint8)
    instances[4:12, 4:12] = 1
    # The first ones know neither identity nor face: a reader that takes their types for everybody's falls here.
    face = {"box": [4.0, 4.0, 9.0, 9.0], "landmarks": [[5.0, 5.0]], "score": 1.0} if number % 2 else None
    subject = {"word": "man", "start": 2, "end": 5, "token": 2, "instance": 1, "box": [4.0, 4.0, 12.0, 12.0]}
    about = {
        "caption": f"a man {number}",
        "identity": str(number) if number > 6 else None,
        "subjects": [{**subject, "face": face}],
    }
    return {
        "jpg": jpeg.getvalue(),
        "json": encode_json(about),
        "instances.png": encode_instances(instances),
        "moments.npy": encode_npy(stream.normal(size=(8, 4, 4)).astype(np.float16)),
        "image_embeds.npy": encode_npy(stream.normal(size=(1, 2, 5)).astype(np.float16)),
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    store = DirectoryStore(tmp_path_factory.mktemp("my photos"))
    samples = {f"{number:064x}": training_sample(number) for number in range(9)}
    keys = list(samples)
    rows = [
        store_shard(store, "shard", name, "f", write_tar((key, samples[key]) for key in part), len(part))
        for name, part in (("a", keys[:7]), ("b", keys[7:]))
    ]
    return Dataset(store, rows, Path(store.uri(store_index(store, rows, "test"))), samples)


def check(read: Mapping[str, Any], expected: Mapping[str, bytes]) -> None:
    """One sample as a library gives it, decoded, against its bytes."""
    about = json.loads(expected["json"])
    assert read["json"]["caption"] == about["caption"] and read["json"]["identity"] == about["identity"]
    assert read["json"]["subjects"][0]["box"] == about["subjects"][0]["box"]
    for name in ("jpg", "instances.png"):
        with Image.open(io.BytesIO(expected[name])) as image:
            assert np.array_equal(np.asarray(read[name].convert("RGB")), np.asarray(image.convert("RGB")))
    for name in ("moments.npy", "image_embeds.npy"):
        array = np.load(io.BytesIO(expected[name]))
        assert np.array_equal(np.asarray(read[name], np.float16), array)


def test_webdataset_reads_pictures_json_and_arrays(dataset: Dataset) -> None:
    import webdataset

    read = list(webdataset.WebDataset(dataset.tars, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in read] == list(dataset.samples)
    for sample in read:
        check(sample, dataset.samples[sample["__key__"]])


@pytest.fixture
def wids(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """webdataset 1.0 no longer brings wids; `make install` puts that of 0.2.111 into a folder of its own."""
    folder = Path(sys.prefix) / "wids"
    if not folder.is_dir():
        pytest.skip(f"no {folder}: pip install --no-deps --target {folder} webdataset==0.2.111")
    # Behind everything else: the webdataset in there must not be the one that others import.
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    import wids

    yield wids


def test_wids_reads_any_sample_by_its_number(dataset: Dataset, wids: Any, tmp_path: Path) -> None:
    read = wids.ShardListDataset(str(dataset.index), cache_dir=str(tmp_path), keep=True)
    assert len(read) == 9
    for number in (8, 0, 6, 7):  # across shards, in no order
        sample = read[number]
        assert sample["__key__"] == list(dataset.samples)[number]
        named = {name.removeprefix("."): value for name, value in sample.items()}
        check(named, dataset.samples[sample["__key__"]])


@pytest.mark.parametrize("streaming", [True, False])
def test_hugging_face_datasets_reads_it(
    dataset: Dataset, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    value = datasets.Value
    face = {"box": [value("float64")], "landmarks": [[value("float64")]], "score": value("float64")}
    subject = {
        **{name: value("int64") for name in ("start", "end", "token", "instance")},
        "word": value("string"),
        "box": [value("float64")],
        "face": face,
    }
    features = datasets.Features(
        {
            "__key__": value("string"),
            "__url__": value("string"),
            "jpg": datasets.Image(),
            "instances.png": datasets.Image(),
            "json": {"caption": value("string"), "identity": value("string"), "subjects": [subject]},
            "moments.npy": datasets.Array3D((8, 4, 4), "float16"),
            "image_embeds.npy": [[[value("float16")]]],
        }
    )
    read = datasets.load_dataset(
        "webdataset",
        data_files={"train": dataset.tars},
        split="train",
        streaming=streaming,
        features=features,
        cache_dir=str(tmp_path),
    )
    samples = list(read)
    assert [sample["__key__"] for sample in samples] == list(dataset.samples)
    for sample in samples:
        check(sample, dataset.samples[sample["__key__"]])


def test_the_index_is_widss_format_with_digests(dataset: Dataset) -> None:
    about = json.loads(dataset.index.read_bytes())
    assert (about["wids_version"], about["nsamples"]) == (1, 9)
    for shard, row in zip(about["shardlist"], dataset.rows, strict=True):
        tar = (dataset.index.parent / shard["url"]).read_bytes()
        assert shard["nsamples"] == len(list(read_tar(tar))) == row.samples
        assert shard["sha256"] == row.sha256


def test_the_same_shards_have_the_same_index(dataset: Dataset) -> None:
    assert dataset_index(dataset.rows, "x") == dataset_index(dataset.rows[::-1], "x")
    assert index_key(dataset.rows) == index_key(dataset.rows[::-1]) != index_key(dataset.rows[:1])
    assert store_index(dataset.store, dataset.rows, "test") == index_key(dataset.rows)
