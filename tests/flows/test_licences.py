"""The licences of a training's photos: counted once per shard, the present shards' alone."""

from pathlib import Path

import pytest

from flows.licences import training_licences
from flows.run import Run
from infra.settings import load_settings
from preprocessing.catalog import store_shard
from preprocessing.shards import encode_json, write_tar

MODELS = ("base", "clip", "captioner", "segmenter", "identity")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model_index.json"):
        (tmp_path / "model" / name).write_text("{}")
    models = {f"models.{name}.location": str(tmp_path / "model") for name in MODELS}
    return Run(load_settings("demo", tmp_path / "workspace", models))


def commit(run: Run, shard: str, *photos: tuple[str, str]) -> None:
    about = [{"source": source, "license": licence} for source, licence in photos]
    tar = write_tar((f"{shard}-{number}", {"json": encode_json(one)}) for number, one in enumerate(about))
    fingerprint = run.fingerprints["shard"]
    run.catalog.commit([store_shard(run.store, "shard", shard, fingerprint, tar, len(photos))])


def test_photos_are_counted_and_marked(run: Run) -> None:
    commit(run, "a", ("ffhq", "CC BY 2.0"), ("ffhq", "CC BY 2.0"), ("paperfolk", "CC0"))
    commit(run, "b", ("paperfolk", "CC0"), ("paperfolk", "CC0"), ("mine", "CC BY-NC 4.0"))
    rows = training_licences(run, run.catalog.version, [])
    assert [(row["source"], row["licence"], row["photos"], row["non_commercial"]) for row in rows] == [
        ("paperfolk", "CC0", 3, False),
        ("ffhq", "CC BY 2.0", 2, True),
        ("mine", "CC BY-NC 4.0", 1, True),
    ]
    assert "NVIDIA" in rows[1]["terms"] and rows[2]["terms"] == ""
    (one,) = training_licences(run, run.catalog.version, ["b", "c"])[:1]
    assert (one["source"], one["photos"]) == ("ffhq", 2)


def test_what_was_counted_before_consent_was_known(run: Run) -> None:
    commit(run, "a", ("mine", "x"))
    (row,) = run.training_shards()
    run.store.put(f"licences/{row.sha256}.json", encode_json({"licences": [["mine", "x", 1]]}))
    (found,) = training_licences(run, run.catalog.version, [])
    assert (found["consent"], found["photos"]) == ("", 1)


def test_a_shard_is_read_once(run: Run) -> None:
    commit(run, "a", ("ffhq", "x"))
    version = run.catalog.version
    first = training_licences(run, version, [])
    (row,) = run.training_shards()
    run.store.put(row.object_key, b"damaged since")
    commit(run, "b", ("ffhq", "x"))
    assert training_licences(run, version, []) == first
    assert [row["photos"] for row in training_licences(run, run.catalog.version, [])] == [2]
