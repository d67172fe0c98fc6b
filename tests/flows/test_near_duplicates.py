"""The stage that looks for near-duplicates: what it finds, what it leaves, and that nothing is done twice."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from flows import ingest as ingest_stage
from flows import model_stages
from flows.caption import caption
from flows.ingest import ingest
from flows.near_duplicates import duplicates
from flows.run import Run
from flows.segment import segment
from flows.shard import shard
from infra.settings import Settings
from preprocessing.catalog import PhotoRow, load_shard
from preprocessing.forgetting import find_photo, forget
from preprocessing.shards import read_tar
from tests.tiny_world import PIXELS, add_photo, tiny_settings, write_models, write_photos
from tests.without_ray import map_shards

ON = {"near_duplicates.search": "true", "near_duplicates.hash_distance": "5", "near_duplicates.cosine": "0.9"}
IN_FFHQ = "images1024x1024/00000"
SECOND_INDEX = f"{IN_FFHQ}/00050.png"
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "mirrored.png": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "larger.png": lambda image: image.resize((3 * PIXELS, 3 * PIXELS), Image.Resampling.BICUBIC),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FFHQ with six photos, of which the last is there under a second index too (in other bytes), and an album."""
    root = tmp_path_factory.mktemp("world")
    write_models(root / "models")
    write_photos(root / "ffhq", 6)
    add_photo(root / "ffhq", 50, Image.open(root / "ffhq" / IN_FFHQ / "00004.png"))  # in other bytes
    album = root / "album"
    album.mkdir()
    photos = root / "ffhq" / "images1024x1024" / "00000"
    for (name, change), photo in zip(CHANGES.items(), ("00001.png", "00002.png"), strict=True):
        change(Image.open(photos / photo)).save(album / name)
    Image.open(photos / "00003.png").save(album / "again.jpg", quality=60)
    Image.effect_noise((PIXELS, PIXELS), 80).convert("RGB").save(album / "new.png")
    return root


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ingest_stage, model_stages):
        monkeypatch.setattr(module, "map_shards", map_shards)


def read(world: Path, workspace: Path, changes: dict[str, str], *sources: str) -> Settings:
    for source in sources:
        settings = tiny_settings(world, workspace, {"ingest.source": source, **changes})
        ingest.fn(settings)
    return settings


def repeats(settings: Settings) -> dict[str, str]:
    return {row.origin: row.detail.partition(":")[2].partition(" (")[0] for row in found(settings)}


def found(settings: Settings) -> list[PhotoRow]:
    return Run(settings).catalog.photos("duplicates")


def both(world: Path) -> tuple[str, str]:
    return f"ffhq:{world / 'ffhq'}", f"folder:{world / 'album'}"


EXPECTED = {
    "mirrored.png": f"{IN_FFHQ}/00001.png",
    "larger.png": f"{IN_FFHQ}/00002.png",
    "again.jpg": f"{IN_FFHQ}/00003.png",
    SECOND_INDEX: f"{IN_FFHQ}/00004.png",
}


def test_changed_copies_are_found_across_sources_and_stay_out_of_training(world: Path, tmp_path: Path) -> None:
    settings = read(world, tmp_path, ON, *both(world))
    result = duplicates.fn(settings)
    assert repeats(settings) == EXPECTED and "4 of 11 new photos repeat another one" in result.note
    assert all("of 64 bits differ" in row.detail and row.shard and row.fingerprint for row in found(settings))
    for stage in (caption, segment, shard):
        stage.fn(settings)
    run = Run(settings)
    trained = {
        sample.json()["origin"] for row in run.training_shards() for sample in read_tar(load_shard(run.store, row))
    }
    assert trained and trained.isdisjoint(EXPECTED)
    counts = run.catalog.counts(run.fingerprints)
    assert counts.refused["near_duplicate"] == 4 and counts.seen == counts.kept + sum(counts.refused.values())


def test_decisions_do_not_depend_on_who_came_first_in_a_batch(world: Path, tmp_path: Path) -> None:
    one = read(world, tmp_path / "one", ON, *both(world))
    other = read(world, tmp_path / "other", ON, *reversed(both(world)))
    smaller = read(world, tmp_path / "smaller", {**ON, "ingest.photos_per_shard": "2"}, *both(world))
    for settings in (one, other, smaller):
        duplicates.fn(settings)
    assert repeats(one) == repeats(other) == repeats(smaller) == EXPECTED
    assert Run(one).catalog.content_digest() == Run(other).catalog.content_digest()


def test_adding_photos_changes_no_fate_and_signs_nothing_again(world: Path, tmp_path: Path) -> None:
    album = read(world, tmp_path, ON, both(world)[1])
    duplicates.fn(album)
    before = {(row.stage, row.shard): row.sha256 for row in Run(album).catalog.shards()}
    assert repeats(album) == {}
    ffhq = read(world, tmp_path, ON, both(world)[0])
    again = duplicates.fn(ffhq)
    # What came first stays, though its name would come later: now FFHQ's photos are those that repeat.
    assert {name: detail.rpartition(":")[2] for name, detail in repeats(ffhq).items()} == {
        other: name for name, other in EXPECTED.items() if name != SECOND_INDEX
    } | {SECOND_INDEX: EXPECTED[SECOND_INDEX]}
    assert (again.done, again.before) == (2, 1)
    after = {(row.stage, row.shard): row.sha256 for row in Run(ffhq).catalog.shards()}
    assert before.items() <= after.items()
    version = Run(ffhq).catalog.version
    assert duplicates.fn(ffhq).note == "no new photos" and Run(ffhq).catalog.version == version


def test_a_new_limit_decides_anew_and_signs_nothing_again(world: Path, tmp_path: Path) -> None:
    settings = read(world, tmp_path, ON, *both(world))
    duplicates.fn(settings)
    strict = tiny_settings(world, tmp_path, {**ON, "near_duplicates.hash_distance": "0"})
    assert Run(strict).pending("signatures") == []
    assert duplicates.fn(strict).refused < 4
    prints = [Run(one).fingerprints for one in (settings, strict)]
    changed = {stage for stage in prints[0] if prints[0][stage] != prints[1][stage]}
    assert changed == {"duplicates", "shard"}


def test_switched_off_there_is_no_trace_of_it(world: Path, tmp_path: Path) -> None:
    settings = read(world, tmp_path, {}, *both(world))
    version = Run(settings).catalog.version
    assert duplicates.fn(settings).note == "near_duplicates.search is false"
    assert Run(settings).catalog.version == version
    assert not {"signatures", "duplicates"} & Run(settings).fingerprints.keys()


def test_training_shards_wait_for_the_decision(world: Path, tmp_path: Path) -> None:
    settings = read(world, tmp_path, ON, both(world)[0])
    for stage in (caption, segment):
        stage.fn(settings)
    assert shard.fn(settings).done == 0
    duplicates.fn(settings)
    assert shard.fn(settings).done > 0


def test_a_forgotten_photo_leaves_no_signature(world: Path, tmp_path: Path) -> None:
    settings = read(world, tmp_path, ON, *both(world))
    duplicates.fn(settings)
    run, name = Run(settings), f"{IN_FFHQ}/00001.png"
    key = find_photo(run.catalog, name).photos[0].key
    forget(run.store, run.catalog, find_photo(run.catalog, name), "asked for")
    signed = {sample.key for row in run.shards("signatures") for sample in read_tar(load_shard(run.store, row))}
    assert key not in signed and len(signed) == 10
    # Nothing is signed or decided again, and what repeated it stays out: its fate was decided.
    assert run.pending("signatures") == [] and duplicates.fn(settings).note == "no new photos"
    assert repeats(settings) == EXPECTED
