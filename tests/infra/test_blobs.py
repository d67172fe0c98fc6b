"""Files under their digest: what they are, and that each is in the store once and whole."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra import blobs
from infra.blobs import describe, describe_bytes, describe_file, ensure_blobs
from infra.manifest import PART_BYTES, Content, blob_key
from infra.storage import DirectoryStore, ObjectStore

LARGE = bytes(range(256)) * (PART_BYTES // 256) * 2 + b"more"


def test_a_file_and_its_bytes_are_described_alike(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    found = describe({"file": tmp_path / "large", "bytes": LARGE})
    assert found["file"] == found["bytes"]
    assert found["file"].sha256 == hashlib.sha256(LARGE).hexdigest() and found["file"].size == len(LARGE)
    parts = [LARGE[:PART_BYTES], LARGE[PART_BYTES:-4], b"more"]
    assert found["file"].parts == tuple(hashlib.sha256(part).hexdigest() for part in parts)


@settings(max_examples=50)
@given(st.binary(max_size=40))
def test_small_ones_have_no_parts(data: bytes) -> None:
    assert describe_bytes(data) == Content(len(data), hashlib.sha256(data).hexdigest())


def test_a_part_that_is_exactly_full_is_the_whole(tmp_path: Path) -> None:
    (tmp_path / "full").write_bytes(bytes(PART_BYTES))
    assert describe_file(tmp_path / "full").parts == () == describe_bytes(bytes(PART_BYTES)).parts


def _put(store: ObjectStore, data: bytes, needed: frozenset[str] = frozenset()) -> list[int]:
    told: list[int] = []
    ensure_blobs(store, [(describe_bytes(data), data)], needed, lambda done, total: told.append(done))
    return told


def test_each_is_there_once_whole_and_told(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    told: list[tuple[int, int]] = []
    wanted = [(describe_file(tmp_path / "large"), tmp_path / "large"), (describe_bytes(b"x"), b"x")]
    ensure_blobs(store, wanted, (), lambda done, total: told.append((done, total)))
    assert told[-1] == (len(LARGE) + 1, len(LARGE) + 1)
    assert store.get(blob_key(wanted[0][0].sha256)) == LARGE and len(store.list("blobs/")) == 2


def test_one_of_another_size_is_written_anew(store: ObjectStore) -> None:
    key = blob_key(describe_bytes(b"content").sha256)
    store.put(key, b"cont")
    assert _put(store, b"content") == [7]
    assert store.get(key) == b"content"


class _Counting(DirectoryStore):
    puts = 0

    def put(self, key: object, data: object) -> None:
        self.puts += 1
        super().put(key, data)  # type: ignore[arg-type]


def test_one_that_is_there_counts_while_it_is_young_or_needed(tmp_path: Path) -> None:
    store = _Counting(tmp_path)
    content = describe_bytes(b"content")
    _put(store, b"content")
    _put(store, b"content")
    assert store.puts == 1
    old = time.time() - 0.6 * blobs.GARBAGE_SECONDS
    os.utime(store.uri(blob_key(content.sha256)), (old, old))
    _put(store, b"content", frozenset([content.sha256]))
    assert store.puts == 1
    _put(store, b"content")  # a collection may be about to take it
    assert store.puts == 2
    assert os.stat(store.uri(blob_key(content.sha256))).st_mtime > old + 100


def test_a_file_that_is_gone_is_an_error(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ensure_blobs(store, [(describe_bytes(b"x"), tmp_path / "none")], ())
