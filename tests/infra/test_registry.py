"""Releases: one content is one release, numbers are nobody's twice, names move, readers see whole releases alone."""

import json
import multiprocessing
import shutil
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.manifest import blob_key
from infra.registry import Release, Releases, models, open_releases
from infra.storage import DirectoryStore, ObjectStore, S3Store

FILES = {"adapter.bin": b"weights", "deep/metrics.json": b"{}"}
DATA = Path(__file__).parents[1] / "data"


def test_the_same_release_twice_is_one_release(store: ObjectStore) -> None:
    releases, said = Releases(store), list[str]()
    first = releases.publish(FILES, {"run_id": "r1"}, said.append)
    assert first.number == 1 and len(first.id) == 16 and said == []
    assert releases.publish(dict(reversed(FILES.items())), {"run_id": "r1"}, said.append) == first
    assert said == ["The same content is release 1 of moa already."]
    second = releases.publish(FILES, {"run_id": "r2"})
    assert second.number == 2 and second.id != first.id
    assert Releases(store).publish(FILES, {"run_id": "r1"}) == first
    assert releases.all() == [first, second] == Releases(store).all()
    assert releases.find("r1") == first and releases.find("r2") == second and releases.find("r3") is None
    assert releases.read(first, "adapter.bin") == b"weights" and releases.card(second) == {"run_id": "r2"}
    assert len(store.list("blobs/")) == 4 and store.list("probes/") == []


def test_a_card_is_lineage_and_metrics(store: ObjectStore) -> None:
    releases = Releases(store)
    release = releases.publish({**FILES, "metrics.json": b'{"metrics": {"identity": 1}}'}, {"run_id": "r"})
    assert releases.card(release) == {"run_id": "r", "metrics": {"identity": 1}}
    bad = releases.publish({**FILES, "metrics.json": b"[]"}, {"run_id": "r"})
    with pytest.raises(UserError, match="metrics.json of release 2 cannot be used"):
        releases.card(bad)


def test_large_files_are_published_from_disk(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(bytes(range(250)) * 160_000)
    told: list[tuple[int, int]] = []
    release = Releases(store).publish(
        {"adapter.bin": tmp_path / "large", "README.md": b"card"}, {}, progress=lambda *size: told.append(size)
    )
    total = 40_000_000 + len(b"card") + len(b"{}\n")
    assert told[-1] == (total, total) and [done for done, _ in told] == sorted(done for done, _ in told)
    (file,) = [file for file in Releases(store).manifest(release).files if file.role == "other"]
    assert len(file.content.parts) == 3 and len(store.get(blob_key(file.content.sha256))) == 40_000_000


def test_models_have_numbers_and_names_of_their_own(store: ObjectStore) -> None:
    assert models(store) == []
    for model in ("moa", "paper-people"):
        releases = Releases(store, model)
        releases.promote("production", releases.publish(FILES, {"of": model}).id, model)
    assert models(store) == ["moa", "paper-people"]
    assert [Releases(store, model).numbers() for model in models(store)] == [[1], [1]]
    assert Releases(store, "moa").card(Releases(store, "moa").resolve("production")) == {"of": "moa"}
    assert len(store.list("blobs/")) == 4  # files that are the same are there once
    moved = store.get("releases/moa/0001/manifest.json")
    store.put("releases/paper-people/0001/manifest.json", moved)
    with pytest.raises(UserError, match="it is one of moa's"):
        Releases(store, "paper-people").resolve("1")


def test_a_reference_finds_its_model(store: ObjectStore) -> None:
    with pytest.raises(UserError, match="nothing has been published"):
        open_releases(store, "production")
    assert open_releases(store, "production", "moa")[0].model == "moa"
    Releases(store, "paper-people").publish(FILES, {})
    for text, which in (("production", "production"), ("1", "1"), ("paper-people", "production")):
        found = open_releases(store, text, "moa")  # there is one model, and it is not that of the settings
        assert (found[0].model, found[1]) == ("paper-people", which)
    Releases(store, "moa").publish(FILES, {})
    assert open_releases(store, "1", "moa")[0].model == "moa" and open_releases(store, "moa@3")[1] == "3"
    with pytest.raises(UserError, match="which model is meant: moa@1, paper-people@1"):
        open_releases(store, "1")
    releases = Releases(store, "moa")
    releases.promote("paper-people", releases.resolve("1").id, "a name like a model's")
    with pytest.raises(UserError, match="is a model and one of moa's names"):
        open_releases(store, "paper-people", "moa")


class _Dying(DirectoryStore):
    """Dies before its n-th write, as a killed process does."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.writes = writes

    def _write_beside(self, path: Path, data: Any) -> Path:
        self.writes -= 1
        if self.writes < 0:
            raise SystemExit
        return super()._write_beside(path, data)


def test_publishing_and_promoting_again_after_a_crash_at_any_write_is_one_release(tmp_path: Path) -> None:
    def whole(releases: Releases) -> Release:
        release = releases.publish(FILES, {"run_id": "r"})
        releases.promote("production", release.id, "passed")
        return release

    expected, died = whole(Releases(DirectoryStore(tmp_path / "whole"))), 0
    for writes in range(100):
        root = tmp_path / str(writes)
        try:
            whole(Releases(_Dying(root, writes)))
            break
        except SystemExit:
            died += 1
        releases = Releases(DirectoryStore(root))
        assert releases.all() in ([], [expected])
        for release in releases.all():  # what a reader sees is whole
            assert releases.read(release, "adapter.bin") == b"weights"
        assert whole(releases) == expected and releases.all() == [expected]
        assert [move.release for move in releases.history("production")] == [expected]
    assert died == 5  # three files, the manifest, the move


def _publish_one(store: ObjectStore, start: Any, content: int) -> tuple[Release, list[str]]:
    said: list[str] = []
    start.wait(60)
    return Releases(store).publish({"adapter.bin": b"%d" % content}, {"run_id": str(content)}, said.append), said


@pytest.mark.parametrize("publishers", [2, 16])
def test_racing_publishers_get_numbers_of_their_own_and_are_told(store: ObjectStore, publishers: int) -> None:
    barrier = threading.Barrier(publishers)
    with ThreadPoolExecutor(publishers) as pool:
        made = list(pool.map(lambda n: _publish_one(store, barrier, n), range(publishers)))
    assert sorted(release.number for release, _ in made) == list(range(1, publishers + 1))
    assert Releases(store).all() == sorted((release for release, _ in made), key=lambda one: one.number)
    for content, (release, said) in enumerate(made):
        assert Releases(store).read(release, "adapter.bin") == b"%d" % content
        told = [f"this one is release {release.number}." in sentence for sentence in said]
        assert told in ([], [True]) and (said or release.number == 1 or publishers > 2)


def test_racing_publishers_of_one_content_make_one_release(store: ObjectStore) -> None:
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: _publish_one(store, barrier, n % 2), range(8)))
    assert Counter(release.number for release, _ in made).keys() == {1, 2} and len(Releases(store).all()) == 2
    assert Releases(store).all() == sorted({release for release, _ in made}, key=lambda one: one.number)


def test_racing_processes_do_so_too(tmp_path: Path) -> None:
    context, store = multiprocessing.get_context("spawn"), DirectoryStore(tmp_path)
    with context.Manager() as manager, ProcessPoolExecutor(2, mp_context=context) as pool:
        start = manager.Barrier(2)
        made = [future.result() for future in [pool.submit(_publish_one, store, start, n) for n in range(2)]]
    assert sorted(release.number for release, _ in made) == [1, 2]


def test_a_reader_sees_whole_releases_alone_while_others_publish_and_promote(store: ObjectStore) -> None:
    done = threading.Event()

    def read() -> int:
        looks = 0
        while not done.is_set() or not looks:
            releases = Releases(store)
            for release in releases.all():
                assert releases.read(release, "adapter.bin") == releases.card(release)["run_id"].encode()
            current = releases.current("production")
            assert current is None or releases.manifest(current).id == current.id
            looks += 1
        return looks

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            for content in range(5):
                release = Releases(store).publish({"adapter.bin": b"%d" % content}, {"run_id": str(content)})
                Releases(store).promote("production", release.id, "newest")
        finally:
            done.set()
        assert reading.result() > 0


def test_a_name_moves_and_keeps_its_history(store: ObjectStore) -> None:
    releases = Releases(store)
    one, two = (releases.publish(FILES, {"run_id": str(n)}) for n in range(2))
    assert releases.current("production") is None
    releases.promote("production", one.id, "the first")
    releases.promote("production", one.id, "again, after a crash")
    releases.promote("production", two.id, "better")
    releases.promote("production", one.id, "an old one", override="we like it")
    assert releases.current("production") == one
    assert [(move.number, move.release, move.why, move.override) for move in releases.history("production")] == [
        (1, one, "the first", ""),
        (2, two, "better", ""),
        (3, one, "an old one", "we like it"),
    ]
    assert releases.resolve("production") == releases.resolve("1") == releases.resolve(one.id) == one
    assert releases.resolve("2") == two


def test_rolling_back_goes_further_each_time_and_is_an_entry_of_its_own(store: ObjectStore) -> None:
    releases = Releases(store)
    with pytest.raises(UserError, match="no earlier"):
        releases.roll_back("production", "x")
    one, two, three, four = (releases.publish(FILES, {"run_id": str(n)}) for n in range(4))
    for release in (one, two, three):
        releases.promote("production", release.id, "next")
    assert releases.roll_back("production", "bad").release == two == releases.current("production")
    assert releases.roll_back("production", "bad too").release == one == releases.current("production")
    with pytest.raises(UserError, match="no earlier"):
        releases.roll_back("production", "x")
    releases.promote("production", four.id, "mended")
    assert releases.roll_back("production", "not at all").release == one
    history = releases.history("production")
    assert [(move.release.number, move.back_to) for move in history] == [
        (1, 0), (2, 0), (3, 0), (2, 2), (1, 1), (4, 0), (1, 5),
    ]  # fmt: skip
    assert history[3].why == "bad"
    store.delete("names/moa/production/0002.json")
    with pytest.raises(UserError, match="has gaps"):
        releases.roll_back("production", "x")


def test_of_two_who_move_a_name_at_once_one_is_told(store: ObjectStore) -> None:
    releases = Releases(store)
    made = [releases.publish(FILES, {"run_id": str(n)}) for n in range(3)]
    releases.promote("production", made[0].id, "first")
    last = releases.names.current("production")
    releases.promote("production", made[1].id, "while the other one looked")
    with pytest.raises(UserError, match="moved by somebody else"):
        releases._move("production", made[2], "late", last)
    releases._move("production", made[1], "a try whose answer was lost", last)
    assert len(releases.history("production")) == 2


@pytest.mark.parametrize("name", ["staging", "7", "0", "0123456789abcdef", "", "../x", "Production"])
def test_an_unknown_release_is_answered_with_the_choices(tmp_path: Path, name: str) -> None:
    releases = Releases(DirectoryStore(tmp_path))
    with pytest.raises(UserError, match="nothing has been published"):
        releases.resolve(name)
    release = releases.publish(FILES, {})
    releases.promote("production", release.id, "first")
    with pytest.raises(UserError, match="choose production, 1"):
        Releases(releases.store).resolve(name)
    with pytest.raises(UserError):
        releases.promote("production", "0123456789abcdef", "unknown")
    with pytest.raises(UserError, match="cannot name a release"):
        releases.promote("Not A Name", release.id, "")


@pytest.mark.parametrize("damage", ["cut", "other", "newer", "swapped", "large", "gone"])
def test_a_manifest_that_is_not_what_it_was_is_refused(store: ObjectStore, damage: str) -> None:
    releases, key = Releases(store), "releases/moa/0001/manifest.json"
    one = releases.publish(FILES, {"run_id": "1"})
    two = releases.publish(FILES, {"run_id": "2"})
    releases.promote("production", one.id, "first")
    data = store.get(key)
    if damage == "gone":
        store.delete(key)
    else:
        other = store.get("releases/moa/0002/manifest.json")
        newer = data.replace(b"moa-release/1", b"moa-release/2")
        store.put(
            key, {"cut": data[:-2], "other": b"{}", "newer": newer, "swapped": other, "large": data * 9999}[damage]
        )
    fresh = Releases(store)
    with pytest.raises(UserError) as caught:
        fresh.manifest(fresh.resolve("production"))
    says = {"newer": "update moa", "swapped": "altered", "large": "the most that is read", "gone": "no release 1"}
    assert says.get(damage, "cannot be used") in str(caught.value) and "\n" not in str(caught.value)
    assert fresh.read(two, "adapter.bin") == b"weights"  # the others are as they were


@pytest.mark.parametrize("damage", ["changed", "longer", "shorter", "missing"])
def test_a_damaged_file_is_refused(store: ObjectStore, damage: str) -> None:
    releases = Releases(store)
    release = releases.publish(FILES, {})
    file = releases.manifest(release).file("adapter.bin")
    assert file is not None
    key = blob_key(file.content.sha256)
    if damage == "missing":
        store.delete(key)
    else:
        store.put(key, {"changed": b"weightz", "longer": b"weights.", "shorter": b"weight"}[damage])
    with pytest.raises(UserError, match="is damaged"):
        releases.read(release, "adapter.bin")
    if damage != "changed":
        releases.publish(FILES, {})  # what is missing or has another size is put back
        assert releases.read(release, "adapter.bin") == b"weights"


def test_a_release_without_files_is_a_mistake(tmp_path: Path) -> None:
    releases = Releases(DirectoryStore(tmp_path))
    for files in ({}, {"manifest.json": b""}, {"lineage.json": b""}, {"../x": b""}, {"a": b"", "A": b""}):
        with pytest.raises(ValueError):
            releases.publish(files, {})
    assert releases.all() == [] and not list(tmp_path.rglob("*.json"))
    with pytest.raises(UserError, match="has no file"):
        releases.read(releases.publish(FILES, {}), "other")
    with pytest.raises(UserError, match="cannot name a model"):
        Releases(DirectoryStore(tmp_path), "../moa")


def test_a_store_that_cannot_be_used_is_one_sentence(s3_store: S3Store) -> None:
    for bucket, address in (("no-such-bucket", s3_store.endpoint_url), (s3_store.bucket, "http://127.0.0.1:9")):
        releases = Releases(S3Store(bucket, "x", address, attempts=1))
        for use in ("all", "numbers", "publish", "resolve", "history"):
            arguments = {"publish": (FILES, {}), "resolve": ("1",), "history": ("production",)}.get(use, ())
            with pytest.raises(UserError, match="cannot be used") as caught:
                getattr(releases, use)(*arguments)
            assert "\n" not in str(caught.value)


def test_a_registry_of_format_1_is_read_and_goes_on(tmp_path: Path) -> None:
    """Written when the format was made; whatever comes later reads it."""
    shutil.copytree(DATA / "registry-1", tmp_path / "store")
    expected = json.loads((DATA / "registry-1.json").read_text())
    releases = Releases(DirectoryStore(tmp_path / "store"), "moa")
    assert models(releases.store) == expected["models"]
    assert [[one.number, one.id] for one in releases.all()] == expected["releases"]
    assert [[m.release.number, m.why, m.override, m.back_to] for m in releases.history("production")] == expected[
        "moves"
    ]
    card = releases.card(releases.resolve("2"))
    assert (card["run_id"], card["verdict"]["promote"]) == (expected["run_id"], False)
    assert releases.pull("production", tmp_path / "out").number == expected["moves"][-1][0]
    assert releases.publish({"adapter.bin": b"next"}, {}).number == len(expected["releases"]) + 1
