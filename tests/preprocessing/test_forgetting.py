"""Forgetting: gone from every later version and from the store's bytes, and nothing else is touched."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

from infra.errors import UserError
from infra.settings import load_settings
from infra.storage import DirectoryStore
from preprocessing.catalog import FORGET, Catalog, PhotoRow, ShardRow, load_shard, store_shard, sweep
from preprocessing.forgetting import (
    Found,
    find_person,
    find_photo,
    forget,
    forgotten_keys,
    forgotten_people,
    purgeable,
    shards_to_replace,
    unforgotten,
)
from preprocessing.ingesting import chunk, ingest_chunk, shard_name
from preprocessing.photos import Reason
from preprocessing.shards import encode_json, read_tar, write_tar
from preprocessing.sources import Record
from preprocessing.training_photos import training_photos

PRINTS = {"ingest": "i", "caption": "c", "shard": "s"}


@dataclass
class World:
    """Eight photos of four people in two shards of four, with captions and training shards, the second in two parts."""

    store: DirectoryStore
    catalog: Catalog
    folder: Path

    def keys(self) -> dict[str, str]:
        return {row.origin: row.key for row in self.catalog.photos("ingest", replaced=True) if row.key}

    def shards(self) -> dict[tuple[str, str, str], str]:
        return {(row.stage, row.shard, row.fingerprint): row.sha256 for row in self.catalog.shards()}

    def bytes_of(self, origin: str) -> list[bytes]:
        """What a search of the whole disk would look for: the picture as ingested, and the key."""
        key = self.keys()[origin]
        for row in self.catalog.shards("ingest"):
            for sample in read_tar(load_shard(self.store, row)):
                if sample.key == key:
                    return [sample.parts["jpg"], f"{key}.jpg".encode(), f"{key}.json".encode()]
        raise AssertionError(f"{origin} is in no shard")


def ingest(world: World) -> list[PhotoRow]:
    settings = load_settings("demo").ingest
    records = [
        Record("album", path.name, path, identity=str(int(path.stem) // 2) if path.stem.isdigit() else None)
        for path in sorted(world.folder.glob("*.png"))
        if path.name not in world.catalog.known_origins("album")
    ]
    rows = []
    for records_of_chunk in chunk(records, 4):
        made = ingest_chunk(records_of_chunk, world.catalog.known_digests(), settings)
        shards = []
        if made.tar is not None:
            name = made.shard_id
            shards.append(store_shard(world.store, "ingest", name, "i", made.tar, len(made.keys), "album"))
            captions = write_tar((key, {"json": encode_json({"caption": f"of {key}"})}) for key in made.keys)
            shards.append(store_shard(world.store, "caption", name, "c", captions, len(made.keys), "album"))
            for part, keys in enumerate((made.keys[:3], made.keys[3:]), start=1):
                tar = write_tar((key, {"jpg": b"picture of " + key.encode()}) for key in keys)
                part_name = name if part == 1 else f"{name}-{part}"
                shards.append(store_shard(world.store, "shard", part_name, "s", tar, len(keys), "album"))
        world.catalog.commit(shards, made.rows)
        rows += made.rows
    return rows


@pytest.fixture
def world(tmp_path: Path) -> World:
    store = DirectoryStore(tmp_path / "store")
    folder = tmp_path / "album"
    folder.mkdir()
    for index in range(8):
        Image.effect_noise((48, 48), 40 + index).save(folder / f"{index}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    made = World(store, Catalog(store), folder)
    ingest(made)
    refused = made.catalog.shards("ingest")[0].shard
    row = next(row for row in made.catalog.photos("ingest") if row.shard == refused)
    late = PhotoRow("caption", refused, row.key, "album", row.origin, "refused", Reason.NO_CAPTION, "", "c")
    made.catalog.commit([], [late])
    return made


def everywhere(root: Path) -> Iterator[bytes]:
    for path in root.rglob("*"):
        if path.is_file():
            yield path.read_bytes()


def test_only_the_photos_shard_is_replaced_and_by_itself_without_the_photo(world: World) -> None:
    before, key = world.shards(), world.keys()["5.png"]
    (name,) = shards_to_replace(world.catalog, [key])
    old = {row.stage + row.shard.removeprefix(name): row for row in world.catalog.shards() if row.shard[:16] == name}
    forget(world.store, world.catalog, find_photo(world.catalog, "5.png"), "asked for")
    after = world.shards()
    assert {k: v for k, v in before.items() if not k[1].startswith(name)}.items() <= after.items()
    new_name = shard_name(world.keys()[f"{index}.png"] for index in (4, 6, 7))
    new = {r.stage + r.shard.removeprefix(new_name): r for r in world.catalog.shards() if r.shard[:16] == new_name}
    assert new.keys() == old.keys() == {"ingest", "caption", "shard", "shard-2"}
    for place, row in new.items():
        kept = [sample for sample in read_tar(load_shard(world.store, old[place])) if sample.key != key]
        assert load_shard(world.store, row) == write_tar((sample.key, sample.parts) for sample in kept)
        assert (row.samples, row.fingerprint) == (len(kept), old[place].fingerprint)
    # Nothing is left to do for any stage, and nothing is counted twice.
    assert world.catalog.pending("caption", "ingest", "c") == []
    counts = world.catalog.counts()
    assert counts.seen == 9 == counts.kept + sum(counts.refused.values())
    assert counts.refused["forgotten"] == 1 and counts.refused["no_caption"] == 1
    assert key not in training_photos(world.catalog, PRINTS)


def test_the_first_version_still_knows_it(world: World) -> None:
    key, version = world.keys()["5.png"], world.catalog.version
    forget(world.store, world.catalog, find_photo(world.catalog, "5.png"), "asked for")
    assert key in training_photos(world.catalog, PRINTS, version)
    assert key in {row.key for row in world.catalog.photos("ingest", version)}


def test_repeating_it_changes_nothing(world: World) -> None:
    found = find_photo(world.catalog, "5.png")
    version = forget(world.store, world.catalog, found, "asked for")
    digest = world.catalog.content_digest()
    assert forget(world.store, world.catalog, found, "for another reason") == version
    assert forget(world.store, world.catalog, find_photo(world.catalog, world.keys()["5.png"][:12]), "x") == version
    assert world.catalog.content_digest() == digest
    assert unforgotten(world.catalog, found) == Found([])


def test_nothing_in_the_store_holds_it_after_a_purge(world: World) -> None:
    needles = world.bytes_of("5.png")
    untouched = world.bytes_of("0.png")
    (world.store.root / "shards" / "ingest").mkdir(exist_ok=True)
    world.store.put("shards/ingest/killed-before-its-commit.tar", needles[0])
    forget(world.store, world.catalog, find_photo(world.catalog, "5.png"), "asked for")
    sweep(
        world.store, world.catalog, ["ingest", "caption", "shard"]
    )  # a retraining comes first: old versions stay whole
    assert sum(needle in data for data in everywhere(world.store.root) for needle in needles[:1]) == 1
    keys = purgeable(world.store, world.catalog)
    assert len(keys) == 4
    for key in keys:
        world.store.delete(key)
    assert not any(needle in data for data in everywhere(world.store.root) for needle in needles)
    assert any(untouched[0] in data for data in everywhere(world.store.root))
    for row in world.catalog.shards():
        if row.stage != FORGET:
            load_shard(world.store, row)  # all that is current is there
    assert purgeable(world.store, world.catalog) == []


def test_it_does_not_come_back_under_its_name_nor_under_another(world: World) -> None:
    forget(world.store, world.catalog, find_photo(world.catalog, "5.png"), "asked for")
    (world.folder / "other.png").write_bytes((world.folder / "5.png").read_bytes())
    Image.effect_noise((48, 48), 99).save(world.folder / "5.png")  # even with other bytes: the name was taken back
    rows = {row.origin: row for row in ingest(world)}
    assert rows.keys() == {"other.png"} and rows["other.png"].status == "refused"
    assert world.keys()["other.png"] in forgotten_keys(world.catalog)


def test_a_photo_is_found_by_name_key_or_file(world: World) -> None:
    key = world.keys()["3.png"]
    for text in ("3.png", "album:3.png", key, key[:8], str(world.folder / "3.png")):
        assert [row.origin for row in find_photo(world.catalog, text).photos] == ["3.png"], text
    (world.folder / "again.png").write_bytes((world.folder / "3.png").read_bytes())
    ingest(world)
    assert {row.origin for row in find_photo(world.catalog, "3.png").photos} == {"3.png", "again.png"}
    assert [row.origin for row in find_photo(world.catalog, "bad.png").photos] == ["bad.png"]
    with pytest.raises(UserError, match="is called 'nobody.png'"):
        find_photo(world.catalog, "nobody.png")
    world.catalog.commit([], [PhotoRow("ingest", "", "", "album", "2.png", "refused", Reason.BROKEN_LINK)])
    assert len(find_photo(world.catalog, "2.png").photos) == 2  # out of reach at first, and mended: one photo
    world.catalog.commit([], [PhotoRow("ingest", "", "f" * 64, "elsewhere", "3.png", "refused", Reason.TOO_SMALL)])
    with pytest.raises(UserError, match="SOURCE:ORIGIN"):
        find_photo(world.catalog, "3.png")


def test_bytes_that_have_not_come_yet_are_refused_when_they_do(world: World) -> None:
    new = world.folder / "late.png"
    Image.effect_noise((48, 48), 77).save(new)
    found = find_photo(world.catalog, str(new))
    assert found.photos == [] and found.key == hashlib.sha256(new.read_bytes()).hexdigest()
    forget(world.store, world.catalog, found, "objected beforehand")
    assert unforgotten(world.catalog, found) == Found([])
    assert [row.status for row in ingest(world)] == ["refused"]
    assert world.catalog.counts().seen == 10


def test_a_person_is_every_photo_of_theirs_and_stays_out(world: World) -> None:
    found = find_person(world.store, world.catalog, "album:2")
    assert {row.origin for row in found.photos} == {"4.png", "5.png"}
    forget(world.store, world.catalog, found, "asked for")
    assert forgotten_people(world.catalog) == {"album:2": "asked for"}
    assert {row.origin for row in world.catalog.photos("ingest") if row.status == "kept"} == {
        f"{index}.png" for index in (0, 1, 2, 3, 6, 7)
    }
    counts = world.catalog.counts()
    assert counts.seen == 9 and counts.refused["forgotten"] == 2
    assert unforgotten(world.catalog, find_person(world.store, world.catalog, "album:2")) == Found([])
    assert find_person(world.store, world.catalog, "album:77").photos == []
    for nobody in ("2", "album:", ":2"):
        with pytest.raises(UserError, match="celeba:2880"):
            find_person(world.store, world.catalog, nobody)


def test_a_shard_of_which_nothing_is_left_is_replaced_by_none(world: World) -> None:
    name = shard_name([key for origin, key in world.keys().items() if origin in ("0.png", "1.png", "2.png", "3.png")])
    for index in range(4):
        forget(world.store, world.catalog, find_photo(world.catalog, f"{index}.png"), "asked for")
    assert len(world.catalog.shards("ingest")) == 1 and name not in {
        row.shard for row in world.catalog.shards("ingest")
    }
    assert world.catalog.counts().refused["forgotten"] == 4


def test_a_column_of_an_earlier_setting_that_is_no_more_is_passed_over(world: World) -> None:
    name = next(iter(shards_to_replace(world.catalog, [world.keys()["5.png"]])))
    lost = ShardRow("caption", name, "older", f"shards/caption/{name}-lost.tar", "0" * 64, 4, "album")
    world.catalog.commit([lost], [])
    forget(world.store, world.catalog, find_photo(world.catalog, "5.png"), "asked for")
    assert {row.fingerprint for row in world.catalog.shards("caption")} == {"c"}


class Killed(BaseException):
    pass


class Dying(DirectoryStore):
    """Dies after so many writes."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.writes = writes

    def put(self, key: str, data: bytes) -> None:
        if self.writes == 0:
            raise Killed
        self.writes -= 1
        super().put(key, data)


@pytest.mark.parametrize("writes", range(5))
def test_killed_at_any_write_and_repeated_it_ends_as_if_undisturbed(
    world: World, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, before = find_photo(world.catalog, "5.png"), world.catalog.content_digest()
    with monkeypatch.context() as patched:
        if writes == 4:  # all is written, the commit is not

            def die(*_: object) -> None:
                raise Killed

            patched.setattr(Catalog, "commit", die)
        with pytest.raises(Killed):
            forget(Dying(world.store.root, writes), world.catalog, found, "asked for")
    assert world.catalog.content_digest() == before
    forget(world.store, world.catalog, found, "asked for")
    assert "5.png" not in {row.origin for row in world.catalog.photos("ingest")}
    assert world.catalog.counts().refused["forgotten"] == 1
    again = replace(world)
    assert forget(again.store, Catalog(again.store), found, "asked for") == world.catalog.version
