"""Files of releases on this machine: fetched once, by parts, verified, resumed, shared, bounded."""

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import release_cache as module
from infra.blobs import describe_bytes
from infra.errors import UserError
from infra.large_objects import LargeObjects, large_objects
from infra.manifest import PART_BYTES, Content
from infra.release_cache import ReleaseCache, Wanted
from infra.storage import DirectoryStore, ObjectStore

LARGE = b"".join(hashlib.sha256(bytes([number])).digest() * (PART_BYTES // 64) for number in range(7))  # 3½ parts


class _Asked:
    """A store's large objects, which remembers what was read."""

    def __init__(self, large: LargeObjects) -> None:
        self._large, self.ranges = large, list[tuple[str, int]]()
        self.before: dict[int, object] = {}

    def read_into(self, key: str, start: int, buffer: memoryview, whole: int) -> None:
        self.ranges.append((key, start))
        act = self.before.get(start)
        if isinstance(act, BaseException):
            raise act
        self._large.read_into(key, start, buffer, whole)
        if callable(act):
            act(buffer)


@pytest.fixture
def cache(tmp_path: Path) -> ReleaseCache:
    return ReleaseCache(tmp_path / "cache")


def put(store: ObjectStore, key: str, data: bytes) -> Wanted:
    store.put(key, data)
    return Wanted(key, describe_bytes(data), store.uri(key))


def fetch(cache: ReleaseCache, large: object, *wanted: Wanted) -> int:
    told: list[int] = []
    cache.fetch(large, wanted, told.append)  # type: ignore[arg-type]
    return sum(told)


def test_files_are_fetched_once_and_verified(store: ObjectStore, cache: ReleaseCache) -> None:
    large = _Asked(large_objects(store))
    wanted = [put(store, "a", LARGE), put(store, "b", b"small"), put(store, "c", b""), put(store, "d", b"small")]
    assert not any(cache.has(one.content) for one in wanted)
    assert fetch(cache, large, *wanted) == len(LARGE) + len(b"small")
    for one, data in zip(wanted, (LARGE, b"small", b"", b"small"), strict=True):
        assert cache.has(one.content) and cache.path(one.content).read_bytes() == data
    assert sorted(large.ranges) == [("a", start) for start in range(0, len(LARGE), PART_BYTES)] + [("d", 0)]
    assert fetch(cache, large, *wanted) == 0 and len(large.ranges) == 5
    assert list((cache.root / "partial").iterdir()) == []


def test_what_came_before_a_failure_is_kept_and_the_rest_fetched(store: ObjectStore, cache: ReleaseCache) -> None:
    one, large = put(store, "a", LARGE), _Asked(large_objects(store))
    large.before[2 * PART_BYTES] = ConnectionError("cut")
    with pytest.raises(UserError, match="goes on from there"):
        fetch(cache, large, one)
    partial = cache.root / "partial" / one.content.sha256
    assert partial.stat().st_size and not cache.has(one.content)
    came = {start for _, start in large.ranges} - {2 * PART_BYTES}
    large.before.clear()
    large.ranges.clear()
    fetch(cache, large, one)
    assert 2 * PART_BYTES in {start for _, start in large.ranges} and not came & {start for _, start in large.ranges}
    assert cache.path(one.content).read_bytes() == LARGE


def test_a_part_on_disk_that_is_not_what_it_should_be_is_fetched_again(cache: ReleaseCache, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    one, large = put(store, "a", LARGE), _Asked(large_objects(store))
    partial = cache.root / "partial" / one.content.sha256
    partial.parent.mkdir(parents=True)
    partial.write_bytes(LARGE[: PART_BYTES + 5] + b"x" + LARGE[PART_BYTES + 6 : 3 * PART_BYTES] + bytes(99_000_000))
    fetch(cache, large, one)
    assert sorted(start for _, start in large.ranges) == [PART_BYTES, 3 * PART_BYTES]
    assert cache.path(one.content).read_bytes() == LARGE


@pytest.mark.parametrize(("data", "parts"), [(LARGE, 4), (b"small", 1)], ids=["large", "small"])
def test_a_part_that_comes_wrong_is_asked_for_again(
    cache: ReleaseCache, tmp_path: Path, data: bytes, parts: int
) -> None:
    store = DirectoryStore(tmp_path / "store")
    one, large = put(store, "a", data), _Asked(large_objects(store))
    flips = iter([1, 1, 0])

    def meddle(buffer: memoryview) -> None:
        buffer[-1] ^= next(flips)

    large.before[PART_BYTES * (parts // 2)] = meddle
    fetch(cache, large, one)
    assert cache.path(one.content).read_bytes() == data and len(large.ranges) == parts + 2


@pytest.mark.parametrize("damage", ["flipped", "swapped", "cut", "longer", "missing"])
def test_a_damaged_file_never_gets_its_name(cache: ReleaseCache, tmp_path: Path, damage: str) -> None:
    store = DirectoryStore(tmp_path / "store")
    one = put(store, "a", LARGE)
    changed = {
        "flipped": LARGE[:-1] + bytes([LARGE[-1] ^ 1]),
        "swapped": LARGE[PART_BYTES : 2 * PART_BYTES] + LARGE[:PART_BYTES] + LARGE[2 * PART_BYTES :],
        "cut": LARGE[:-1],
        "longer": LARGE + b"x",
    }
    store.delete("a") if damage == "missing" else store.put("a", changed[damage])
    with pytest.raises(UserError, match="The release is damaged") as caught:
        fetch(cache, large_objects(store), one)
    assert store.uri("a") in str(caught.value) and "\n" not in str(caught.value)
    assert not cache.has(one.content) and not list((cache.root / "blobs").rglob("*"))


def test_parts_that_do_not_make_the_whole_are_no_way_into_the_cache(cache: ReleaseCache, tmp_path: Path) -> None:
    """A manifest that gives a stranger's file the digest of another one."""
    store = DirectoryStore(tmp_path / "store")
    one = put(store, "a", LARGE)
    lying = Content(one.content.size, hashlib.sha256(b"somebody else's").hexdigest(), one.content.parts)
    with pytest.raises(UserError, match="not what was published"):
        fetch(cache, large_objects(store), Wanted("a", lying, "a"))
    assert not cache.path(lying).exists()


def test_a_file_of_before_has_no_parts_and_is_checked_as_a_whole(cache: ReleaseCache, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    whole = Content(len(LARGE), hashlib.sha256(LARGE).hexdigest())
    put(store, "a", LARGE)
    fetch(cache, large_objects(store), Wanted("a", whole, "a"))
    assert cache.path(whole).read_bytes() == LARGE
    other = Content(len(LARGE), hashlib.sha256(b"x").hexdigest())
    with pytest.raises(UserError, match="not what was published"):
        fetch(cache, large_objects(store), Wanted("a", other, "a"))
    assert not cache.path(other).exists()


def test_of_two_who_want_a_file_one_fetches_it(cache: ReleaseCache, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    one, other = put(store, "a", LARGE), put(store, "b", b"small")
    large, first = _Asked(large_objects(store)), threading.Barrier(2)

    def go(order: tuple[Wanted, ...]) -> None:
        first.wait(30)
        fetch(ReleaseCache(tmp_path / "cache"), large, *order)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(go, [(one, other), (other, one)]))
    assert len(large.ranges) == 5 and cache.path(one.content).read_bytes() == LARGE


def test_a_file_that_was_touched_is_read_again(cache: ReleaseCache, tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    one = put(store, "a", b"content")
    fetch(cache, large_objects(store), one)
    path, note = cache.path(one.content), cache.path(one.content).with_name(f"{one.content.sha256}.json")
    os.utime(path)
    assert cache.has(one.content)  # the same bytes
    note.write_text("{")
    assert cache.has(one.content) and json.loads(note.read_text())["size"] == 7
    note.write_text(json.dumps({**json.loads(note.read_text()), "boot": "another"}))
    assert cache.has(one.content)
    path.chmod(0o644)
    path.write_bytes(b"CONTENT")
    assert not cache.has(one.content) and not path.exists()
    fetch(cache, large_objects(store), one)
    path.chmod(0o644)
    path.write_bytes(b"conten")
    assert not cache.has(one.content)


def test_what_was_lost_in_a_crash_of_the_machine_is_noticed(cache: ReleaseCache, tmp_path: Path) -> None:
    """Name, size and time survived, the bytes did not."""
    store = DirectoryStore(tmp_path / "store")
    one = put(store, "a", b"content")
    fetch(cache, large_objects(store), one)
    path, note = cache.path(one.content), cache.path(one.content).with_name(f"{one.content.sha256}.json")
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(bytes(7))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    note.write_text(json.dumps({**json.loads(note.read_text()), "boot": "before the crash"}))
    assert not cache.has(one.content)


def test_a_placed_file_shares_its_disk_space_or_is_a_copy(
    cache: ReleaseCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "store")
    one = put(store, "a", b"content")
    fetch(cache, large_objects(store), one)
    cache.place(one.content, tmp_path / "linked")
    assert (tmp_path / "linked").read_bytes() == b"content"
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir() and shared_memory.stat().st_dev != tmp_path.stat().st_dev:
        other = shared_memory / f"moa-test-{os.getpid()}"
        try:
            cache.place(one.content, other)
            assert other.read_bytes() == b"content" and other.stat().st_nlink == 1
        finally:
            other.unlink(missing_ok=True)


def test_what_no_folder_uses_goes_when_the_cache_is_full(
    cache: ReleaseCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(tmp_path / "store")
    files = [put(store, str(number), bytes([number]) * 1_000_000) for number in range(4)]
    monkeypatch.setenv(module.CACHE_GB, "0.0025")
    fetch(cache, large_objects(store), files[0])
    fetch(cache, large_objects(store), files[1])
    cache.path(files[0].content).chmod(0o644)
    os.link(cache.path(files[0].content), tmp_path / "used")
    time.sleep(0.01)
    fetch(cache, large_objects(store), files[2])
    assert [cache.path(one.content).exists() for one in files[:3]] == [True, True, True]
    time.sleep(0.01)
    assert cache.has(files[1].content)  # used later than the third
    fetch(cache, large_objects(store), files[3])
    assert [cache.path(one.content).exists() for one in files] == [True, True, False, True]


def test_a_cache_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    one = put(store, "a", b"content")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="MOA_CACHE"):
        fetch(ReleaseCache(tmp_path / "file"), large_objects(store), one)
    huge = Wanted("a", Content(2**40, "ab" * 32, ("cd" * 32,) * (2**40 // PART_BYTES)), "a")
    with pytest.raises(UserError, match=r"1099.51 GB to fetch and .* GB free"):
        fetch(ReleaseCache(tmp_path / "cache"), large_objects(store), huge)
