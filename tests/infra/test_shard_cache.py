"""Local files of shards: fetched once, verified, bounded."""

import hashlib
import os
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.errors import DamagedObject, UserError
from infra.shard_cache import ShardCache
from infra.storage import DirectoryStore


class CountingStore:
    """An object store that is no directory, and counts what it is asked for."""

    def __init__(self, root: Path) -> None:
        self.inner, self.asked = DirectoryStore(root), Counter[str]()

    def get(self, key: str) -> bytes:
        self.asked[key] += 1
        return self.inner.get(key)

    def uri(self, key: str) -> str:
        return f"s3://there/{key}"


def put(store: DirectoryStore, name: str, size: int = 100) -> tuple[str, str]:
    data = name.encode() * size
    store.put(f"shards/{name}", data)
    return f"shards/{name}", hashlib.sha256(data).hexdigest()


def test_each_is_fetched_once_by_however_many_readers(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "store")
    key, sha256 = put(store.inner, "a", 100_000)
    caches = [ShardCache(store, tmp_path / "cache", 10**9) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda cache: cache.path(key, sha256), caches))
    assert store.asked[key] == 1
    assert {path.read_bytes() for path in paths} == {b"a" * 100_000}
    ShardCache(store, tmp_path / "cache", 10**9).path(key, sha256)  # another process, later
    assert store.asked[key] == 1


def test_what_was_used_longest_ago_goes(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "store")
    shards = {name: put(store.inner, name) for name in "abcd"}
    cache = ShardCache(store, tmp_path / "cache", 300)
    for age, name in enumerate("abc"):
        os.utime(cache.path(*shards[name]), ns=(age, age))
    cache.path(*shards["a"])  # used again
    cache.path(*shards["d"])
    left = {path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")}
    assert left == {shards[name][1] for name in "acd"}
    cache.path(*shards["b"])
    assert store.asked[shards["b"][0]] == 2 and store.asked[shards["a"][0]] == 1


def test_one_that_is_larger_than_the_bound_comes_alone(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "store")
    small, large = put(store.inner, "s"), put(store.inner, "l", 1000)
    cache = ShardCache(store, tmp_path / "cache", 300)
    cache.path(*small)
    assert cache.path(*large).stat().st_size == 1000
    assert sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) == 1000


@pytest.mark.parametrize("in_place", [True, False])
def test_other_bytes_and_none_are_said_and_nothing_is_kept(in_place: bool, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store") if in_place else CountingStore(tmp_path / "store")
    key, sha256 = put(store if isinstance(store, DirectoryStore) else store.inner, "a")
    (tmp_path / "store" / key).write_bytes(b"other")
    cache = ShardCache(store, tmp_path / "cache", 10**9)  # type: ignore[arg-type]
    assert cache.in_place == in_place
    with pytest.raises(UserError, match="shards/a is damaged"):
        cache.path(key, sha256)
    (tmp_path / "store" / key).unlink()
    with pytest.raises(UserError, match="shards/a is gone"):
        cache.path(key, sha256)
    assert not [path for path in tmp_path.glob("cache/*") if path.suffix != ".lock"]


def test_a_copy_that_this_disk_has_damaged_is_fetched_anew(tmp_path: Path) -> None:
    store = CountingStore(tmp_path / "store")
    key, sha256 = put(store.inner, "a")
    first = ShardCache(store, tmp_path / "cache", 10**9)
    first.path(key, sha256).write_bytes(b"b" * 100)
    assert first.path(key, sha256).read_bytes() == b"b" * 100, "a process looks once"
    assert ShardCache(store, tmp_path / "cache", 10**9).path(key, sha256).read_bytes() == b"a" * 100
    assert store.asked[key] == 2
    first.path(key, sha256).write_bytes(b"c")
    first.distrust(sha256)
    assert first.path(key, sha256).read_bytes() == b"a" * 100 and store.asked[key] == 3


def test_an_object_that_is_damaged_after_it_was_verified(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    key, sha256 = put(store, "a")
    cache = ShardCache(store, tmp_path / "cache", 1)
    cache.path(key, sha256).write_bytes(b"b")
    cache.path(key, sha256)
    cache.distrust(sha256)
    with pytest.raises(DamagedObject) as caught:
        cache.path(key, sha256)
    again = pickle.loads(pickle.dumps(caught.value))  # as it travels between processes
    assert again.key == key and str(again) == str(caught.value)


def test_a_directorys_own_file_is_no_copy(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    key, sha256 = put(store, "a")
    assert ShardCache(store, tmp_path / "cache", 1).path(key, sha256) == tmp_path / "store" / key
    assert not (tmp_path / "cache").exists()


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CountingStore(tmp_path / "store")
    key, sha256 = put(store.inner, "a")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot be kept .*No space left"):
        ShardCache(store, tmp_path / "cache", 10**9).path(key, sha256)
