"""Pulls: what is not here yet, verified, whole or not at all; again, offline, interrupted, beside others."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from infra import s3_reading, storage
from infra.ceph import ENDPOINT
from infra.errors import UserError, UserNotice
from infra.manifest import PART_BYTES, blob_key
from infra.pulling import pull, pull_from
from infra.registry import Release, Releases
from infra.storage import DirectoryStore, ObjectStore, S3Store
from tests.infra.faulty_s3 import FaultyS3, faulty_s3

REPOSITORY = Path(__file__).parents[2]
FILES = {"adapter.bin": b"weights", "deep/metrics.txt": b"{}", "README.md": b"card"}
LARGE = bytes(range(256)) * (4 * PART_BYTES // 256)  # four parts of the same size: any of them may come first


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one for each test."""
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def two(store: ObjectStore) -> tuple[Releases, Release, Release]:
    """Releases 1, in production, and 2, which has two of its files."""
    releases = Releases(store)
    one = releases.publish(FILES, {"run_id": "1"})
    second = releases.publish({**FILES, "adapter.bin": b"better weights"}, {"run_id": "1"})
    releases.promote("production", one.id, "first")
    return releases, one, second


def test_a_pull_writes_what_was_published(two: tuple[Releases, Release, Release], tmp_path: Path) -> None:
    releases, one, second = two
    destination = tmp_path / "new" / "folder"
    assert releases.pull("1", destination) == one
    assert {name: (destination / name).read_bytes() for name in FILES} == FILES
    assert (destination / "manifest.json").read_bytes() == releases.store.get("releases/moa/0001/manifest.json")
    assert releases.pull("production", destination) == one  # it is there
    assert releases.pull(one.id, tmp_path / "another") == one
    (tmp_path / "empty").mkdir()
    assert releases.pull("2", tmp_path / "empty") == second
    assert (tmp_path / "empty" / "adapter.bin").read_bytes() == b"better weights"


def test_an_address_is_enough(store: ObjectStore, two: tuple[Releases, Release, Release], tmp_path: Path) -> None:
    root = store.uri("x")[:-2]
    endpoint = store.endpoint_url if isinstance(store, S3Store) else None
    for text in ("moa@production", "production", "moa", "moa@1", "1", two[1].id):
        folder = pull(f"{root}/{text}", endpoint_url=endpoint)
        assert (folder / "adapter.bin").read_bytes() == b"weights"
    assert folder.name == f"moa-0001-{two[1].id}"
    assert pull(f"{root}/2", tmp_path / "two", endpoint_url=endpoint) == tmp_path / "two"
    with pytest.raises(UserError, match="says no registry"):
        pull("moa@1")
    with pytest.raises(UserError, match="choose production, 1, 2"):
        pull(f"{root}/moa@staging", endpoint_url=endpoint)


def test_a_new_release_brings_what_changed_and_the_same_one_nothing(
    two: tuple[Releases, Release, Release], tmp_path: Path
) -> None:
    store, sizes = two[0].store, []
    for which, folder in (("1", "a"), ("1", "b"), ("2", "c"), ("2", "c"), ("1", "d")):
        sizes.append(pull_from(store, which, "", tmp_path / folder).fetched)
    everything = sum(map(len, FILES.values())) + len(b'{\n "run_id": "1"\n}\n')
    assert sizes == [everything, 0, len(b"better weights"), 0, 0]


def test_a_folder_in_use_is_exchanged_only_when_told(two: tuple[Releases, Release, Release], tmp_path: Path) -> None:
    releases, one, second = two
    store, folder = releases.store, tmp_path / "folder"
    releases.pull("1", folder)
    with pytest.raises(UserError, match="holds another release: .*--update"):
        releases.pull("2", folder)
    pull_from(store, "2", "", folder, update=True)
    assert (folder / "adapter.bin").read_bytes() == b"better weights"
    (folder / "README.md").chmod(0o644)
    (folder / "README.md").write_text("mine")
    with pytest.raises(UserError, match="README.md in another state"):
        releases.pull("2", folder)
    pull_from(store, "2", "", folder, update=True)
    assert (folder / "README.md").read_bytes() == b"card"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt beside it"):
        releases.pull("2", folder)
    with pytest.raises(UserError, match="notes.txt, which is no release's"):
        pull_from(store, "1", "", folder, update=True)
    assert (folder / "notes.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("mine")
    for place in (tmp_path / "other", tmp_path / "other" / "x"):
        with pytest.raises(UserError, match="is not an empty folder"):
            pull_from(store, "1", "", place, update=True)
    with pytest.raises(UserError, match="name another folder"):
        releases.pull("1", tmp_path / "other" / "x" / "below a file")


def test_a_link_to_a_folder_is_that_folder(two: tuple[Releases, Release, Release], tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    two[0].pull("1", tmp_path / "link")
    pull_from(two[0].store, "2", "", tmp_path / "link", update=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "adapter.bin").read_bytes() == b"better weights"


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "missing", "swapped"])
@pytest.mark.parametrize("name", [*FILES, "lineage.json"])
def test_a_damaged_release_leaves_nothing_behind(tmp_path: Path, name: str, damage: str) -> None:
    releases = Releases(DirectoryStore(tmp_path / "store"))
    release = releases.publish(FILES, {"run_id": "1"})
    contents = {file.name: file.content for file in releases.manifest(release).files}
    key, store = blob_key(contents[name].sha256), releases.store
    data = store.get(key)
    if damage == "missing":
        store.delete(key)
    else:
        other = next(content for at, content in contents.items() if at != name)
        changed = {"flipped": bytes([data[0] ^ 1]) + data[1:], "cut": data[:-1], "longer": data + b"."}
        store.put(key, changed.get(damage) or store.get(blob_key(other.sha256)))
    with pytest.raises(UserError, match="damaged") as caught:
        pull_from(store, "1", "", tmp_path / "work" / "out")
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "work").exists()


def test_an_added_file_is_no_part_of_a_release(two: tuple[Releases, Release, Release], tmp_path: Path) -> None:
    two[0].store.put("releases/moa/0001/evil.bin", b"x")
    two[0].pull("1", tmp_path / "out")
    assert not (tmp_path / "out" / "evil.bin").exists()


@pytest.fixture
def proxy(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    monkeypatch.setattr(s3_reading, "_ATTEMPTS", 2)
    monkeypatch.setattr(storage, "_ATTEMPTS", 2)
    with faulty_s3(s3_store.endpoint_url or "") as server:
        yield server


def _through(proxy: FaultyS3, s3_store: S3Store) -> str:
    return f"s3://{s3_store.bucket}/{s3_store.prefix}"


@pytest.mark.parametrize("fault", ["500", "503", "reset", "short", "less", "more"])
def test_what_passes_does_not_matter(fault: str, proxy: FaultyS3, s3_store: S3Store, tmp_path: Path) -> None:
    if fault == "more" and ENDPOINT in os.environ:
        pytest.skip("a request without its range does not have the signature that a real server asks for")
    releases = Releases(s3_store)
    releases.promote("production", releases.publish(FILES, {}).id, "first")
    small = () if fault == "less" else ("manifest.json", "names/moa/production/0001.json")
    for part in ("blobs/", *small):  # how long these are is not known but from the server
        proxy.faults[part] = [fault, ""]
    folder = pull(f"{_through(proxy, s3_store)}/moa@production", tmp_path / "out", endpoint_url=proxy.address)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize(
    ("part", "fault"),
    [("blobs/", "500"), ("blobs/", "short"), ("blobs/", "expired"), ("manifest.json", "denied"), ("names/", "short")],
)
def test_what_stays_is_one_sentence_and_nothing_is_left(
    part: str, fault: str, proxy: FaultyS3, s3_store: S3Store, tmp_path: Path
) -> None:
    releases = Releases(s3_store)
    releases.promote("production", releases.publish(FILES, {}).id, "first")
    proxy.faults[part] = [fault]
    with pytest.raises(UserError) as caught:
        pull(f"{_through(proxy, s3_store)}/moa@production", tmp_path / "work" / "out", endpoint_url=proxy.address)
    assert "\n" not in str(caught.value) and not (tmp_path / "work").exists()


def test_a_second_pull_asks_for_no_file(proxy: FaultyS3, s3_store: S3Store, tmp_path: Path) -> None:
    releases = Releases(s3_store)
    releases.promote("production", releases.publish(FILES, {}).id, "first")
    address = f"{_through(proxy, s3_store)}/moa@production"
    pull(address, tmp_path / "a", endpoint_url=proxy.address)
    assert len(proxy.gets("blobs/")) == 4
    proxy.asked.clear()
    for folder in ("a", "b"):
        pull(address, tmp_path / folder, endpoint_url=proxy.address)
    assert proxy.gets("blobs/") == []


def test_offline_a_pulled_release_is_there_and_says_how_old_it_is(
    store: ObjectStore, two: tuple[Releases, Release, Release], tmp_path: Path, cache: Path
) -> None:
    root = store.uri("x")[:-2]
    endpoint = store.endpoint_url if isinstance(store, S3Store) else None
    pull(f"{root}/moa@production", endpoint_url=endpoint)
    for text in ("1", two[1].id, "moa@1"):
        pull(f"{root}/{text}", tmp_path / text, endpoint_url=endpoint, offline=True)
    note = next(cache.rglob("names/production"))
    os.utime(note, (time.time() - 3 * 86_400,) * 2)
    for text in ("production", "moa"):
        with pytest.warns(UserNotice, match="release 1 of moa was .* 3 days ago"):
            pull(f"{root}/{text}", endpoint_url=endpoint, offline=True)
    for text in ("moa@2", "staging", "other@1"):
        with pytest.raises(UserError, match=f"{text} was never pulled here"):
            pull(f"{root}/{text}", endpoint_url=endpoint, offline=True)


def test_where_nobody_answers_what_is_known_is_taken(proxy: FaultyS3, s3_store: S3Store, tmp_path: Path) -> None:
    releases = Releases(s3_store)
    releases.promote("production", releases.publish(FILES, {}).id, "first")
    address = f"{_through(proxy, s3_store)}/moa@production"
    pull(address, tmp_path / "a", endpoint_url=proxy.address)
    proxy.shutdown()
    proxy.server_close()
    with pytest.warns(UserNotice, match="cannot be asked: release 1 of moa was production"):
        pull(address, tmp_path / "b", endpoint_url=proxy.address)
    assert (tmp_path / "b" / "adapter.bin").read_bytes() == b"weights"
    with pytest.raises(UserError, match="was never pulled here"):
        pull(f"{_through(proxy, s3_store)}/moa@9", tmp_path / "c", endpoint_url=proxy.address)


def test_a_registry_that_was_taken_away_is_not_asked(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "store")
    Releases(store).publish(FILES, {})
    pull(f"{tmp_path}/store/moa@1", tmp_path / "a")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    pull(f"{tmp_path}/store/moa@1", tmp_path / "b")
    with pytest.raises(UserError, match="nothing has been published there"):
        pull(f"{tmp_path}/nowhere/moa@1", tmp_path / "c")


def test_another_registry_at_the_same_place_is_not_mistaken_for_the_old_one(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        store = DirectoryStore(tmp_path / "store")
        Releases(store).publish({"adapter.bin": content}, {})
        assert (pull(f"{tmp_path}/store/moa@1") / "adapter.bin").read_bytes() == content
        (tmp_path / "store").rename(tmp_path / content.decode())


def test_a_pull_that_is_killed_goes_on_by_ranges(
    proxy: FaultyS3, s3_store: S3Store, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    releases = Releases(s3_store)
    (file,) = [
        file for file in releases.manifest(releases.publish({"adapter.bin": tmp_path / "large"}, {})).files
        if file.role == "other"
    ]  # fmt: skip
    proxy.faults[blob_key(file.content.sha256)] = ["", "drip"]  # one part comes, the others never end
    address = f"{_through(proxy, s3_store)}/moa@1"
    code = (
        f"from infra.pulling import pull; pull({address!r}, {str(tmp_path / 'out')!r}, endpoint_url={proxy.address!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, start_new_session=True)
    partial = cache / "releases" / "partial" / file.content.sha256
    deadline = time.monotonic() + 120
    while not (partial.exists() and partial.stat().st_blocks * 512 >= PART_BYTES):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    proxy.faults.clear()
    proxy.asked.clear()
    assert (pull(address, tmp_path / "out", endpoint_url=proxy.address) / "adapter.bin").read_bytes() == LARGE
    assert len(proxy.gets(file.content.sha256)) == 3  # of four parts


def test_two_pulls_into_one_folder_are_one_pull_and_one_sentence(
    proxy: FaultyS3, s3_store: S3Store, tmp_path: Path
) -> None:
    Releases(s3_store).publish(FILES, {})
    proxy.faults["blobs/"] = ["drip"]
    address = f"{_through(proxy, s3_store)}/moa@1"
    code = (
        f"from infra.pulling import pull; pull({address!r}, {str(tmp_path / 'out')!r}, endpoint_url={proxy.address!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while not proxy.gets("blobs/"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(UserError, match="Another pull into"):
        pull(address, tmp_path / "out", endpoint_url=s3_store.endpoint_url)
    assert process.wait(60) == 0 and (tmp_path / "out" / "adapter.bin").read_bytes() == b"weights"


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="no small disk can be mounted",
)
def test_a_full_disk_is_one_sentence_and_no_folder(tmp_path: Path) -> None:
    """A disk of 20 MB for a release of 25; the space that it says is free is not all there is to it."""
    (tmp_path / "large").write_bytes(os.urandom(25_000_000))
    Releases(DirectoryStore(tmp_path / "store")).publish({"adapter.bin": tmp_path / "large"}, {})
    code = f"""
import shutil
from infra import release_cache
from infra.errors import UserError
from infra.pulling import pull
for believed in (None, 10**12):
    if believed:
        release_cache.shutil.disk_usage = lambda path: type("Usage", (), {{"free": believed}})
    try:
        pull({str(tmp_path / "store")!r} + "/moa@1", {str(tmp_path / "small" / "out")!r})
    except UserError as error:
        print(error)
"""
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=20m none "{small}" && MOA_CACHE="{small}/cache" "$0" -c "$1"; ls -A "{small}"'
    answer = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, code], cwd=REPOSITORY, capture_output=True, text=True
    )
    said = answer.stdout.splitlines()
    assert "0.03 GB to fetch and 0.02 GB free" in said[0] and "No space left on device" in said[1], answer
    assert said[2:] == ["cache"] and answer.stderr == ""


def test_many_who_want_a_folder_of_the_cache_wait_for_one_another(
    two: tuple[Releases, Release, Release], tmp_path: Path
) -> None:
    """As the processes of one training or server do when they start."""
    with ThreadPoolExecutor(6) as pool:
        pulled = list(pool.map(lambda _: pull_from(two[0].store, "1", "", None), range(6)))
    assert len({one.folder for one in pulled}) == 1 and sum(one.fetched > 0 for one in pulled) == 1


def test_a_small_cache_never_loses_what_is_being_pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOA_CACHE_GB", "0.000001")
    store = DirectoryStore(tmp_path / "store")
    for number in (1, 2):
        Releases(store).publish({"same.bin": bytes(900), "other.bin": bytes([number]) * 900}, {})
    for number in (1, 2, 1):
        pull_from(store, str(number), "", tmp_path / "out")
        assert (tmp_path / "out" / "other.bin").read_bytes() == bytes([number]) * 900
        shutil.rmtree(tmp_path / "out")


def test_the_module_is_light() -> None:
    heavy = {"torch", "ray", "prefect", "pydantic", "boto3", "rich", "numpy"}
    code = f"import sys, infra.pulling; print(sorted({heavy} & sys.modules.keys()))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
