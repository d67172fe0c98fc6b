"""The actors' bodies, in this process: what they read and write; a model is loaded only where it is needed."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows.workers import CaptionWorker, IngestWorker, SegmentWorker
from infra.errors import UserError
from infra.settings import ModelReference, Settings, load_settings
from infra.storage import DirectoryStore
from preprocessing.catalog import ShardRow, load_shard, store_shard
from preprocessing.prepared import MASK_SOURCE
from preprocessing.shards import encode_instances, encode_json, read_tar, write_tar
from preprocessing.sources import Record

MISSING = ModelReference(location="/does/not/exist", backend="transformers")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings("demo", tmp_path)


def _ingested(store: DirectoryStore, prepared: bool) -> ShardRow:
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(picture, "JPEG")
    instances = np.zeros((64, 64), np.uint8)
    instances[10:60, 20:50] = 1
    people = [{"instance": 1, "score": 1.0, "box": [20, 10, 50, 60], "area": 0.37}]
    binding = [{"word": "man", "start": 2, "end": 5, "instance": 1}]
    about: dict[str, object] = {"source": "fastcomposer", "origin": "0.jpg", "faces": []}
    parts = {"jpg": picture.getvalue()}
    if prepared:
        about["prepared"] = {"caption": "a man", "people": people, "binding": binding}
        parts["instances.png"] = encode_instances(instances)
    tar = write_tar([("key0", parts | {"json": encode_json(about)})])
    return store_shard(store, "ingest", "s", "f", tar, 1, "fastcomposer")


def test_photos_that_came_with_captions_and_masks_need_no_models(settings: Settings, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    captioner = CaptionWorker(store, MISSING, settings.caption, "c")
    segmenter = SegmentWorker(store, MISSING, settings.segment, False, "s")
    row = _ingested(store, prepared=True)
    captioned, segmented = captioner({"row": row}), segmenter({"row": row})
    assert captioned["photos"] == segmented["photos"] == []
    (caption,) = read_tar(load_shard(store, captioned["shard"]))
    (people,) = read_tar(load_shard(store, segmented["shard"]))
    assert caption.json() == {"caption": "a man"} and people.json()["mask_source"] == MASK_SOURCE
    # The first photo that does need them is told what is missing.
    other = _ingested(store, prepared=False)
    for worker in (captioner, segmenter):
        with pytest.raises(UserError, match="/does/not/exist"):
            worker({"row": other})


def test_a_chunk_of_records_becomes_a_shard_or_only_rows(settings: Settings, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    worker = IngestWorker(store, settings.ingest, "f", frozenset())
    Image.effect_noise((128, 128), 50).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    good = Record("folder", "a.png", tmp_path / "a.png", faces=())
    bad = Record("folder", "b.png", tmp_path / "b.png", faces=())
    both = worker({"index": 3, "records": [good, bad]})
    assert both["index"] == 3 and both["shard"].samples == 1 == len(both["keys"])
    assert sorted(row.reason for row in both["photos"]) == ["", "not_an_image"]
    nothing = worker({"index": 4, "records": [bad]})
    assert nothing["shard"] is None and nothing["keys"] == [] and len(nothing["photos"]) == 1
