"""Looking after a registry: what is damaged, what mends it, and what nobody needs."""

import os
import time
from pathlib import Path

import pytest

from infra import blobs
from infra.errors import UserError
from infra.manifest import blob_key
from infra.registry import Releases
from infra.storage import DirectoryStore, ObjectStore, S3Store
from infra.upkeep import collect_garbage, find_garbage, mend, verify

FILES = {"adapter.bin": b"weights", "README.md": b"card"}
DAY = 24 * 3600.0


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "cache"))


def key_of(releases: Releases, number: int, name: str) -> str:
    file = releases.manifest(releases.resolve(str(number))).file(name)
    assert file is not None
    return blob_key(file.content.sha256)


def test_what_is_damaged_is_named_with_who_needs_it(store: ObjectStore) -> None:
    releases = Releases(store)
    for number in range(3):
        releases.publish({**FILES, "of.txt": b"%d" % number}, {})
    releases.promote("production", releases.resolve("3").id, "newest")
    told: list[tuple[int, int]] = []
    assert verify(releases, progress=lambda *size: told.append(size)) == []
    assert told[-1][0] == told[-1][1] == sum(map(len, FILES.values())) + 3 + len(b"{}\n")
    store.put(key_of(releases, 1, "adapter.bin"), b"weightz")
    store.put(key_of(releases, 2, "of.txt"), b"12")
    store.delete(key_of(releases, 3, "of.txt"))
    store.put("releases/moa/0002/manifest.json", store.get("releases/moa/0002/manifest.json")[:-1])
    store.put("names/moa/production/0001.json", b"{}")
    found = {one.address: (one.problem, one.needed_by) for one in verify(Releases(store))}
    shared = store.uri(key_of(releases, 1, "adapter.bin"))
    assert found[shared] == ("its SHA-256 is another one", ("moa@1/adapter.bin", "moa@3/adapter.bin"))
    assert found[store.uri(key_of(releases, 3, "of.txt"))] == ("it is missing", ("moa@3/of.txt",))
    assert "cannot be used" in found["moa@2/manifest.json"][0] and "damaged" in found["moa@production"][0]
    assert len(found) == 4
    assert [one.needed_by for one in verify(Releases(store), [2])] == [("moa@2",)]
    store.delete("releases/moa/0002/manifest.json")
    assert "moa@2/manifest.json" in {one.address for one in verify(Releases(store))}


def test_a_good_copy_mends(store: ObjectStore, tmp_path: Path) -> None:
    releases = Releases(store)
    releases.publish(FILES, {})
    folder = tmp_path / "pulled"
    releases.pull("1", folder)
    store.put(key_of(releases, 1, "adapter.bin"), b"weightz")
    store.delete(key_of(releases, 1, "README.md"))
    assert mend(releases, verify(releases), None) == [] and verify(Releases(store)) == []  # from the cache

    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    store.put(key_of(releases, 1, "adapter.bin"), b"weightz")
    store.delete(key_of(releases, 1, "README.md"))
    assert mend(releases, verify(releases), None) == verify(Releases(store)) != []
    (folder / "README.md").unlink()
    (folder / "README.md").write_bytes(b"CARD")
    (left,) = mend(releases, verify(releases), folder)
    assert left.needed_by == ("moa@1/README.md",)
    releases.publish(FILES, {})  # what is missing comes with the same release again
    assert verify(Releases(store)) == []


def _old_registry(root: Path, age: float = 2 * DAY) -> Releases:
    """Two releases of which one was made unneeded, a killed publisher's files, a half-written one; all of this age."""
    store = DirectoryStore(root)
    releases = Releases(store)
    releases.publish(FILES, {})
    releases.publish({**FILES, "adapter.bin": b"candidate"}, {})
    store.put(blob_key("ab" * 32), b"of a killed publisher")
    store.put("probes/0123", b"1")
    (root / "blobs" / "sha256" / "ab" / ".partial-0123").write_bytes(b"half")
    for path in root.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - age,) * 2)
    return releases


def test_garbage_is_what_no_release_needs_and_old(tmp_path: Path) -> None:
    releases = _old_registry(tmp_path / "store")
    store = releases.store
    before = store.list()
    found = find_garbage(store)
    assert found.objects == {blob_key("ab" * 32): 21, "probes/0123": 1} and len(found.unfinished) == 1
    assert store.list() == before
    assert collect_garbage(store, found) == 2
    assert verify(Releases(store)) == [] and [release.number for release in Releases(store).all()] == [1, 2]
    assert set(before) - set(store.list()) == set(found.objects)
    assert not list((tmp_path / "store").rglob(".partial-*"))
    assert find_garbage(store).objects == {} and find_garbage(store).unfinished == ()
    young = _old_registry(tmp_path / "young", age=0.9 * DAY)
    assert find_garbage(young.store).objects == {} and find_garbage(young.store).unfinished == ()


def test_garbage_that_a_publisher_takes_up_meanwhile_stays(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    releases = Releases(store)
    releases.publish(FILES, {})
    for number, data in enumerate((b"written anew", b"needed by now", b"nobody's")):
        store.put(blob_key(blobs.describe_bytes(data).sha256), data)
        os.utime(store.uri(blob_key(blobs.describe_bytes(data).sha256)), (time.time() - 2 * DAY - number,) * 2)
    found = find_garbage(store)
    assert len(found.objects) == 3
    blobs.ensure_blobs(store, [(blobs.describe_bytes(b"written anew"), b"written anew")], ())
    releases.publish({"adapter.bin": b"needed by now"}, {})
    assert collect_garbage(store, found) == 1 and verify(Releases(store)) == []
    assert store.exists(blob_key(blobs.describe_bytes(b"written anew").sha256))


class _Meanwhile(DirectoryStore):
    """Somebody deletes all files just before the manifest that needs them is there."""

    def create(self, key: str, data: bytes) -> bool:
        if key.endswith("manifest.json"):
            for blob in self.list("blobs/"):
                self.delete(blob)
        return super().create(key, data)


def test_what_a_collection_takes_before_the_manifest_is_there_is_put_back(tmp_path: Path) -> None:
    Releases(_Meanwhile(tmp_path)).publish(FILES, {})
    assert verify(Releases(DirectoryStore(tmp_path))) == []


def test_where_a_release_cannot_be_read_nothing_is_garbage(tmp_path: Path) -> None:
    releases = _old_registry(tmp_path)
    manifest = releases.store.get("releases/moa/0002/manifest.json")
    releases.store.put("releases/moa/0002/manifest.json", manifest.replace(b"release/1", b"release/2"))
    with pytest.raises(UserError, match="update moa"):
        find_garbage(releases.store)


def test_killed_uploads_to_s3_are_garbage(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.upkeep.GARBAGE_SECONDS", -60.0)
    Releases(s3_store).publish(FILES, {})
    s3_store.client.create_multipart_upload(Bucket=s3_store.bucket, Key=s3_store.name("blobs/sha256/ab/x"))
    found = find_garbage(s3_store)
    assert found.objects == {} and len(found.unfinished) == 1
    assert collect_garbage(s3_store, found) == 0 and find_garbage(s3_store).unfinished == ()
