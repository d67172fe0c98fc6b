import multiprocessing
import os
import pickle
import resource
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import boto3
import polars as pl
import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from infra import storage
from infra.errors import UserError
from infra.storage import DirectoryStore, ObjectStore, S3Store, check_key, open_store


def test_objects_are_written_read_listed_and_deleted(store: ObjectStore) -> None:
    assert not store.exists("a/b.bin")
    assert store.list() == store.list("a/") == []
    with pytest.raises(KeyError):
        store.get("a/b.bin")
    store.put("a/b.bin", b"one")
    store.put("a/b.bin", b"two")
    store.put("a/c/d.bin", b"")
    store.put("ab.bin", b"three")
    assert store.get("a/b.bin") == b"two"
    assert store.get("a/c/d.bin") == b""
    assert store.exists("a/b.bin") and not store.exists("a")
    assert store.list() == ["a/b.bin", "a/c/d.bin", "ab.bin"]
    assert store.list("a/") == ["a/b.bin", "a/c/d.bin"]
    assert store.list("a") == ["a/b.bin", "a/c/d.bin", "ab.bin"]
    assert store.list("a/c/d") == ["a/c/d.bin"]
    store.delete("a/b.bin")
    store.delete("a/b.bin")
    assert store.list() == ["a/c/d.bin", "ab.bin"]
    assert store.uri("ab.bin").endswith("/ab.bin")


def test_an_object_comes_in_pieces_and_its_name_after_them(store: ObjectStore) -> None:
    pieces = [bytes([number % 256]) * (number % 7) for number in range(1500)]  # more than one call writes, some empty
    store.put("whole", b"".join(pieces))
    store.put(lambda: "folder/pieces", pieces)
    store.put("none", [])
    assert store.get("folder/pieces") == store.get("whole") and store.get("none") == b""
    assert store.list() == ["folder/pieces", "none", "whole"]
    with pytest.raises(ValueError, match="not a plain relative path"):
        store.put(lambda: "../outside", pieces)


def test_create_writes_only_what_is_absent(store: ObjectStore) -> None:
    assert store.create("log/1.json", b"first")
    assert not store.create("log/1.json", b"second")
    assert store.get("log/1.json") == b"first"
    assert store.list() == ["log/1.json"]  # nothing half-written stays


def test_of_many_creators_one_wins(store: ObjectStore) -> None:
    with ThreadPoolExecutor(12) as pool:
        for round_ in range(5):
            won = list(pool.map(lambda n, key=f"race/{round_}": store.create(key, bytes([n])), range(12)))
            assert won.count(True) == 1
            assert store.get(f"race/{round_}") == bytes([won.index(True)])


def test_a_store_travels_to_another_process(store: ObjectStore) -> None:
    store.put("key", b"value")
    store.get("key")  # a store in use holds a connection, which must not travel along
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(store.get, "key").result() == b"value"


def test_a_delta_table_lives_in_the_store(store: ObjectStore) -> None:
    rows = pl.DataFrame({"key": ["a", "b"], "count": [1, 2]})
    for _ in range(2):
        rows.write_delta(store.delta_uri("table"), mode="append", storage_options=store.delta_options() or None)
    found = pl.read_delta(store.delta_uri("table"), storage_options=store.delta_options() or None)
    assert found["count"].sum() == 6


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "..", "a/../b", ".", "a/./b", "a\\b", "a\nb", "a/.partial-1"])
def test_a_key_that_could_leave_the_root_is_refused(store: ObjectStore, key: str) -> None:
    for use in (store.get, store.exists, store.delete, store.uri):
        with pytest.raises(ValueError, match="object key"):
            use(key)
    with pytest.raises(ValueError, match="object key"):
        store.put(key, b"")
    with pytest.raises(ValueError, match="object key"):
        store.create(key, b"")


@given(st.text())
def test_whatever_passes_as_a_key_stays_inside(key: str) -> None:
    try:
        check_key(key)
    except ValueError:
        return
    root = Path("/root/store")
    assert (root / key).is_relative_to(root) and ".." not in (root / key).parts


def test_what_a_crash_left_half_written_is_not_listed_and_can_be_swept_away(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b/c", b"")
    (tmp_path / "a" / "b" / ".partial-0123").write_bytes(b"half")
    assert store.list() == ["a/b/c"]
    store.sweep("nothing/there")
    store.sweep("a")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["c"]


def test_what_is_too_large_for_one_request_goes_in_parts(s3_store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_ONE_PUT", 2**20)
    data = os.urandom(20 * 2**20)
    s3_store.put("a/large", data)
    s3_store.put("a/small", data[: 2**20])
    heads = {
        name: s3_store.client.head_object(Bucket=s3_store.bucket, Key=s3_store.name(f"a/{name}"))
        for name in ("large", "small")
    }
    assert s3_store.get("a/large") == data and "-3" in heads["large"]["ETag"] and "-" not in heads["small"]["ETag"]


def test_an_upload_that_a_kill_cut_off_can_be_swept_away(s3_store: S3Store) -> None:
    for key in ("a/b", "ab/c"):
        s3_store.client.create_multipart_upload(Bucket=s3_store.bucket, Key=s3_store.name(key))
    s3_store.sweep("nothing/there")
    s3_store.sweep("a")
    assert [one["Key"] for one in s3_store.running_uploads(s3_store.name("a"))] == [s3_store.name("ab/c")]


def test_what_does_not_fit_takes_up_no_room(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put("a/b.bin", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # the kernel stops in the middle, as on a full disk
    try:
        with pytest.raises(OSError, match="too large") as caught:
            store.put("a/b.bin", bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "a" / "b.bin")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.bin"] and store.get("a/b.bin") == b"old"


def test_an_address_chooses_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), DirectoryStore)
    store = open_store("s3://bucket/some/prefix/", "http://127.0.0.1:9000")
    assert isinstance(store, S3Store)
    assert store.uri("key") == "s3://bucket/some/prefix/key"
    for wrong in ("gs://bucket", "s3://", "s3:///prefix"):
        with pytest.raises(UserError, match="storage.root|Storage root"):
            open_store(wrong)
    for strange in ("a[1]", "a%20b", "a|b", "really?"):
        with pytest.raises(UserError, match="another folder"):
            open_store(str(tmp_path / strange))


def test_folders_that_others_mark_are_no_objects(s3_store: S3Store) -> None:
    s3_store.put("runs/1/a.bin", b"a")
    client = boto3.client("s3", endpoint_url=s3_store.endpoint_url)
    client.put_object(Bucket=s3_store.bucket, Key=f"{s3_store.prefix}/runs/1/", Body=b"")  # as Arrow does, and consoles
    assert s3_store.list("runs/") == ["runs/1/a.bin"]


def test_a_bucket_that_cannot_be_used_is_one_sentence(s3_store: S3Store) -> None:
    for bucket, address in (("no-such-bucket", s3_store.endpoint_url), (s3_store.bucket, "not an address")):
        with pytest.raises(UserError, match="storage.root") as caught:
            S3Store(bucket, "some/prefix", address).exists("key")
        assert bucket in str(caught.value) and "\n" not in str(caught.value)


def test_what_was_there_once_is_no_mistake_when_it_is_away(s3_store: S3Store) -> None:
    """A worker that starts while the store is away fails as a worker does, and is started again."""
    s3_store.list()
    there = pickle.loads(pickle.dumps(s3_store))
    there.bucket = "absent"
    with pytest.raises(ClientError, match="NoSuchBucket"):
        there.list()


def test_sizes_are_those_of_what_is_listed(store: ObjectStore) -> None:
    for name, data in {"a/1": b"", "a/2": b"xyz", "ab": b"x"}.items():
        store.put(name, data)
    assert store.sizes("a/") == {"a/1": 0, "a/2": 3}
    assert list(store.sizes()) == store.list() == ["a/1", "a/2", "ab"]
