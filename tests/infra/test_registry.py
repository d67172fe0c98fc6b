from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.registry import Release, Releases
from infra.storage import DirectoryStore, ObjectStore

FILES = {"adapter.safetensors": b"weights", "deep/metrics.json": b"{}"}


def test_the_same_release_twice_is_one_release(store: ObjectStore) -> None:
    releases = Releases(store)
    first = releases.publish(FILES, {"run_id": "r1"})
    assert first.number == 1 and len(first.id) == 16
    assert releases.publish(dict(reversed(FILES.items())), {"run_id": "r1"}) == first
    second = releases.publish(FILES, {"run_id": "r2"})
    assert second.number == 2 and second.id != first.id
    assert releases.publish(FILES, {"run_id": "r1"}) == first
    assert releases.all() == [first, second]
    assert releases.find("r1") == first and releases.find("r2") == second and releases.find("r3") is None
    assert releases.read(first, "adapter.safetensors") == b"weights"


class _Dying(DirectoryStore):
    """Dies before its n-th write, as a killed process does."""

    def __init__(self, root: Path, writes: int) -> None:
        super().__init__(root)
        self.writes = writes

    def _write_beside(self, path: Path, data: bytes) -> Path:
        self.writes -= 1
        if self.writes < 0:
            raise SystemExit
        return super()._write_beside(path, data)


def test_publishing_again_after_a_crash_at_any_write_is_one_release(tmp_path: Path) -> None:
    whole = Releases(DirectoryStore(tmp_path / "whole")).publish(FILES, {"run_id": "r"})
    for writes in range(4):
        root = tmp_path / str(writes)
        with pytest.raises(SystemExit):
            Releases(_Dying(root, writes)).publish(FILES, {"run_id": "r"})
        releases = Releases(DirectoryStore(root))
        assert releases.all() == []
        assert releases.publish(FILES, {"run_id": "r"}) == whole
        assert releases.all() == [whole]


def test_racing_publishers_get_numbers_of_their_own(store: ObjectStore) -> None:
    releases = Releases(store)
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: releases.publish(FILES, {"run_id": str(n % 3)}), range(6)))
    assert len({release.id for release in made}) == 3
    assert {release.id for release in releases.all()} == {release.id for release in made}
    assert [releases.resolve(release.id).id for release in made] == [release.id for release in made]


def test_a_name_moves_and_remembers(store: ObjectStore) -> None:
    releases = Releases(store)
    one, two = (releases.publish(FILES, {"run_id": str(n)}) for n in range(2))
    assert releases.current("production") is None
    releases.promote("production", one.id, "the first")
    releases.promote("production", one.id, "again, after a crash")
    releases.promote("production", two.id, "better")
    releases.promote("production", one.id, "rolled back")
    assert releases.current("production") == one
    assert [(move.number, move.release, move.why) for move in releases.history("production")] == [
        (1, one, "the first"),
        (2, two, "better"),
        (3, one, "rolled back"),
    ]
    assert releases.resolve("production") == releases.resolve("1") == releases.resolve(one.id) == one
    assert releases.resolve("2") == two


@pytest.mark.parametrize("name", ["staging", "7", "0123456789abcdef", "", "../x", "Production"])
def test_an_unknown_release_is_answered_with_the_choices(tmp_path: Path, name: str) -> None:
    releases = Releases(DirectoryStore(tmp_path))
    with pytest.raises(UserError, match="nothing has been published"):
        releases.resolve(name)
    release = releases.publish(FILES, {})
    releases.promote("production", release.id, "first")
    with pytest.raises(UserError, match="choose production, 1"):
        releases.resolve(name)
    with pytest.raises(UserError):
        releases.promote("production", "0123456789abcdef", "unknown")
    with pytest.raises(UserError, match="cannot name a release"):
        releases.promote("Not A Name", release.id, "")


def test_a_pull_writes_what_was_published(store: ObjectStore, tmp_path: Path) -> None:
    releases = Releases(store)
    release = releases.publish(FILES, {"run_id": "r"})
    destination = tmp_path / "new" / "folder"
    assert releases.pull("1", destination) == release
    assert {name: (destination / name).read_bytes() for name in FILES} == FILES
    assert (destination / "manifest.json").read_bytes() == store.get(f"releases/{release.id}/manifest.json")
    with pytest.raises(UserError, match="not an empty folder"):
        releases.pull("1", destination)
    with pytest.raises(UserError, match="name another folder"):
        releases.pull("1", destination / "adapter.safetensors" / "below a file")


@pytest.mark.parametrize("damage", ["changed", "longer", "missing", "manifest"])
def test_a_damaged_release_leaves_nothing_behind(store: ObjectStore, tmp_path: Path, damage: str) -> None:
    releases = Releases(store)
    release = releases.publish(FILES, {})
    key = f"releases/{release.id}/{'manifest.json' if damage == 'manifest' else 'adapter.safetensors'}"
    if damage == "missing":
        store.delete(key)
    else:
        store.put(key, {"changed": b"weightz", "longer": b"weights.", "manifest": b"{}"}[damage])
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(UserError, match="damaged|altered"):
        releases.pull("1", work / "out")
    assert list(work.iterdir()) == []


def test_a_release_without_files_is_a_mistake(tmp_path: Path) -> None:
    releases = Releases(DirectoryStore(tmp_path))
    for files in ({}, {"manifest.json": b""}, {"../x": b""}):
        with pytest.raises(ValueError):
            releases.publish(files, {})
    assert releases.all() == []
    with pytest.raises(UserError, match="has no file"):
        releases.read(releases.publish(FILES, {}), "other")
    assert releases.all() == [Release(1, releases.resolve("1").id)]
