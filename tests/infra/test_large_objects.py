"""Large objects in a directory and on S3: uploaded in parts, resumed, read in ranges, told by their age."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.blobs import describe_file
from infra.errors import UserError
from infra.large_objects import UnreadableObject, download, large_objects, local_file, read_range
from infra.manifest import PART_BYTES
from infra.storage import DirectoryStore, ObjectStore, S3Store
from tests.infra.conftest import LARGE


def test_a_file_becomes_an_object_that_is_read_in_ranges(store: ObjectStore, large_file: Path, tmp_path: Path) -> None:
    large, told, data = large_objects(store), [], large_file.read_bytes()
    assert large.find("blobs/x") is None
    large.upload("blobs/x", large_file, describe_file(large_file), told.append)
    assert sum(told) == LARGE and large.find("blobs/x").size == LARGE
    for start, size in ((0, 10), (PART_BYTES - 5, 20), (LARGE - 7, 7)):
        assert read_range(large, "blobs/x", start, size, LARGE) == data[start : start + size]
    assert local_file(store, "blobs/x", tmp_path).read_bytes() == data
    (tmp_path / "copy").write_bytes(b"what was there")
    download(store, "blobs/x", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert store.list() == ["blobs/x"] and large.unfinished("blobs/") == []


def test_a_small_file_too(store: ObjectStore, tmp_path: Path) -> None:
    for name, data in (("empty", b""), ("small", b"abc")):
        (tmp_path / name).write_bytes(data)
        large_objects(store).upload(f"blobs/{name}", tmp_path / name, describe_file(tmp_path / name), lambda size: None)
        assert store.get(f"blobs/{name}") == data
        assert local_file(store, f"blobs/{name}", tmp_path / "..").read_bytes() == data
    entries = large_objects(store).entries("blobs/")
    assert {key: one.size for key, one in entries.items()} == {"blobs/empty": 0, "blobs/small": 3}
    assert abs(large_objects(store).clock() - time.time()) < 60
    assert all(abs(one.written - time.time()) < 60 for one in entries.values())
    with pytest.raises(KeyError):
        local_file(store, "blobs/none", tmp_path)
    with pytest.raises(KeyError):
        download(store, "blobs/none", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_object_of_another_size_is_not_read(store: ObjectStore) -> None:
    store.put("a", b"0123456789")
    large = large_objects(store)
    for whole in (9, 11):
        with pytest.raises(UnreadableObject):
            read_range(large, "a", 0, 5, whole)
    with pytest.raises(UnreadableObject):
        read_range(large, "a", 8, 5, 13)
    with pytest.raises(KeyError):
        read_range(large, "b", 0, 5, 5)


def test_a_file_that_changes_while_it_is_published_is_refused(store: ObjectStore, large_file: Path) -> None:
    described = describe_file(large_file)

    def meddle(size: int) -> None:
        os.utime(large_file, ns=(1, time.time_ns()))

    for content, advance in ((described, meddle), (replace(described, size=LARGE - 1), lambda size: None)):
        with pytest.raises(UserError, match="changed while"):
            large_objects(store).upload("blobs/x", large_file, content, advance)
    assert store.list() == []


def test_what_a_killed_upload_left_is_found_and_removed(store: ObjectStore) -> None:
    large = large_objects(store)
    if isinstance(store, DirectoryStore):
        (store.root / "blobs" / "sha256").mkdir(parents=True)
        (store.root / "blobs" / "sha256" / ".partial-0123").write_bytes(b"half")
    else:
        assert isinstance(store, S3Store)
        store.client.create_multipart_upload(Bucket=store.bucket, Key=store.name("blobs/sha256/x"))
    (one,) = large.unfinished("blobs/")
    if isinstance(store, DirectoryStore):  # moto says 2010
        assert abs(one.begun - time.time()) < 60
    assert large.unfinished("releases/") == []
    large.abandon(one)
    assert large.unfinished("blobs/") == []


class _Overwriting(S3Store):
    """As servers that do not know `If-None-Match`."""

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_a_store_that_overwrites_is_refused(store: ObjectStore, s3_store: S3Store) -> None:
    large_objects(store).require_creates_once("probes/1")
    assert store.list() == []
    careless: Any = _Overwriting(s3_store.bucket, s3_store.prefix, s3_store.endpoint_url)
    with pytest.raises(UserError, match="If-None-Match"):
        large_objects(careless).require_creates_once("probes/1")
