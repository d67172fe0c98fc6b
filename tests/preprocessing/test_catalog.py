"""The table of photos and shards: nothing is lost, nothing is there twice, whatever is repeated or killed."""

import dataclasses
import hashlib
import json
import pickle
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.storage import DirectoryStore, ObjectStore, S3Store
from preprocessing.catalog import Catalog, PhotoRow, ShardRow, load_shard, store_shard, sweep
from preprocessing.photos import Reason


def photo(i: int, shard: str = "a", reason: str = "") -> PhotoRow:
    return PhotoRow("ingest", shard, f"key{i}", "folder", f"{i}.jpg", "refused" if reason else "kept", reason)


def shard(name: str = "a", stage: str = "ingest", fingerprint: str = "f") -> ShardRow:
    return ShardRow(stage, name, fingerprint, f"shards/{stage}/{name}.tar", "0" * 64, 1)


def test_an_empty_catalog_answers(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    assert catalog.version == -1
    assert catalog.photos() == [] and catalog.shards("ingest") == [] and catalog.known_digests() == set()
    assert catalog.counts().seen == 0
    assert catalog.commit([], []) == -1


def test_one_commit_holds_a_shard_and_its_photos(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    assert catalog.commit([shard()], [photo(1), photo(2, reason=Reason.DUPLICATE)]) == 0
    assert catalog.version == 0
    assert catalog.shards("ingest") == [shard()]
    kept, refused = catalog.photos()
    assert (kept.fingerprint, kept.status) == ("f", "kept")
    assert type(refused.reason) is str and refused.reason == "duplicate"


def test_committing_again_writes_nothing(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    catalog.commit([shard()], [photo(1)])
    digest = catalog.content_digest()
    assert catalog.commit([shard()], [photo(1)]) == 0
    assert catalog.commit([shard()], [photo(1), photo(2)]) == 1  # only the new one is added
    assert len(catalog.photos()) == 2
    assert catalog.content_digest(version=0) == digest != catalog.content_digest()


def test_old_versions_stay_readable(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    catalog.commit([shard("a")], [])
    catalog.commit([shard("b")], [])
    assert [row.shard for row in catalog.shards("ingest", version=0)] == ["a"]
    assert [row.shard for row in catalog.shards("ingest")] == ["a", "b"]


@pytest.mark.parametrize("name", ["my photos", "café", "50%", "#1", "a+b & c"])
def test_a_folder_may_have_any_ordinary_name(name: str, tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path / name))
    catalog.commit([shard("a")], [photo(1)])
    catalog.commit([shard("b")], [])
    assert [row.shard for row in catalog.shards("ingest")] == ["a", "b"] and len(catalog.photos()) == 1
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_pending_goes_by_fingerprint(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    catalog.commit([shard("a"), shard("b"), shard("a", "caption", "old")], [])
    assert [row.shard for row in catalog.pending("caption", "ingest", "old")] == ["b"]
    assert [row.shard for row in catalog.pending("caption", "ingest", "new")] == ["a", "b"]
    assert catalog.pending("caption", "ingest", "new", upstream_fingerprint="other") == []


def test_counts_add_up_over_stages(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    rows = [photo(i) for i in range(5)] + [photo(5, "", Reason.EMPTY_FILE), photo(6, "", Reason.EMPTY_FILE)]
    catalog.commit([shard()], rows)
    nobody = PhotoRow("segment", "a", "key0", "folder", "0.jpg", "refused", Reason.NO_PERSON, fingerprint="s")
    no_word = PhotoRow("shard", "a", "key0", "folder", "0.jpg", "refused", Reason.NO_PERSON_WORD, fingerprint="t")
    other = PhotoRow("shard", "a", "key1", "folder", "1.jpg", "refused", Reason.NO_PERSON_WORD, fingerprint="t")
    catalog.commit([], [nobody, no_word, other])
    counts = catalog.counts()
    assert (counts.seen, counts.kept) == (7, 3)
    assert counts.refused == {"empty_file": 2, "no_person": 1, "no_person_word": 1}  # the first reason, once
    assert catalog.counts({"segment": "s"}).refused == {"empty_file": 2, "no_person": 1}


def test_a_mended_photo_is_counted_once(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    catalog.commit([], [PhotoRow("ingest", "", "", "folder", "1.jpg", "refused", Reason.BROKEN_LINK)])
    assert catalog.known_origins("folder") == {"1.jpg"}
    assert catalog.known_origins("folder", retry={Reason.BROKEN_LINK}) == set()
    catalog.commit([shard()], [photo(1)])
    counts = catalog.counts()
    assert (counts.seen, counts.kept, counts.refused) == (1, 1, {})
    assert catalog.known_origins("folder", retry={Reason.BROKEN_LINK}) == {"1.jpg"}
    assert catalog.known_origins("ffhq") == set()


def test_a_crash_between_upload_and_commit_costs_nothing(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    catalog = Catalog(store)
    store_shard(store, "ingest", "lost", "f", b"half a run", 1)  # killed here: no commit
    assert catalog.shards("ingest") == [] and catalog.version == -1
    row = store_shard(store, "ingest", "a", "f", b"bytes", 1)  # the next run
    catalog.commit([row], [photo(1)])
    again = store_shard(store, "ingest", "a", "f", b"bytes", 1)  # killed after the commit, repeated
    assert catalog.commit([again], [photo(1)]) == 0
    assert load_shard(store, row) == b"bytes"
    assert sweep(store, catalog, ["ingest"]) == [
        f"shards/ingest/lost-{hashlib.sha256(b'half a run').hexdigest()[:16]}.tar"
    ]
    assert load_shard(store, row) == b"bytes"


KILLED = """
import sys
from pathlib import Path
from infra.storage import DirectoryStore
from preprocessing.catalog import Catalog, PhotoRow, store_shard

store = DirectoryStore(Path(sys.argv[1]))
catalog = Catalog(store)
print("ready", flush=True)
for i in range(40):
    row = store_shard(store, "ingest", f"s{i:02}", "f", str(i).encode(), 1)
    catalog.commit([row], [PhotoRow("ingest", row.shard, f"key{i}", "folder", f"{i}.jpg", "kept")])
"""


def test_sigkill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    command, root = [sys.executable, "-c", KILLED, str(tmp_path)], Path(__file__).parents[2]
    for milliseconds in (20, 150):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(milliseconds / 1000)  # somewhere among uploads and commits; where exactly must not matter
        process.kill()
        process.wait()
        process.stdout.close()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=root)
    store = DirectoryStore(tmp_path)
    rows = Catalog(store).shards("ingest")
    assert [load_shard(store, row) for row in rows] == [str(i).encode() for i in range(40)]
    assert [row.origin for row in Catalog(store).photos()] == sorted(f"{i}.jpg" for i in range(40))


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    row = store_shard(store, "ingest", "a", "f", b"bytes", 1)
    store.put(row.object_key, b"other")
    with pytest.raises(ValueError, match="SHA-256 differs"):
        load_shard(store, row)


def write_at_once(store: ObjectStore, writers: int) -> Catalog:
    def work(writer: int) -> None:
        catalog = Catalog(store)
        for i in range(3):
            catalog.commit([shard(f"s{i}")], [photo(i), photo(100 * writer + 50 + i)])

    threads = [threading.Thread(target=work, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Catalog(store)


def test_writers_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    catalog = write_at_once(DirectoryStore(tmp_path), writers=4)
    assert [row.shard for row in catalog.shards("ingest")] == ["s0", "s1", "s2"]
    assert len(catalog.photos()) == 3 + 4 * 3


def test_a_catalog_travels_between_processes(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    catalog.commit([shard()], [photo(1)])
    assert pickle.loads(pickle.dumps(catalog)).photos() == catalog.photos()


@settings(max_examples=8)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_the_content_does_not_depend_on_how_it_was_committed(
    tmp_path_factory: pytest.TempPathFactory, seed: int, cuts: list[int]
) -> None:
    """In any order, in any portions, any of them repeated (as after a crash): the same rows, the same digest."""
    rows = [photo(i, reason="" if i % 3 else Reason.TRUNCATED) for i in range(6)]
    whole = Catalog(DirectoryStore(tmp_path_factory.mktemp("whole")))
    whole.commit([shard()], rows)
    random.Random(seed).shuffle(rows)
    parts = Catalog(DirectoryStore(tmp_path_factory.mktemp("parts")))
    edges = [0, *sorted(cuts), 6]
    for low, high in zip(edges, edges[1:], strict=False):
        parts.commit([shard()], rows[low:high])
        parts.commit([shard()], rows[low:high])
    assert parts.content_digest() == whole.content_digest()
    assert parts.counts() == whole.counts()


def test_the_digest_is_of_the_rows_as_json(tmp_path: Path) -> None:
    """So that the digest on a release's card can be computed again, by anyone, from the rows alone."""
    catalog = Catalog(DirectoryStore(tmp_path))
    names = ["plain.jpg", 'quote".jpg', "back\\slash.jpg", "été 😀.jpg", "line\n.jpg", "\x7f.jpg"]
    catalog.commit([shard()], [PhotoRow("ingest", "a", f"k{name}", "folder", name, "kept") for name in names])
    empty = dict.fromkeys(
        "kind stage shard key source origin status reason detail fingerprint object_key sha256".split(), ""
    )
    rows = [{**empty, "kind": "shard", "samples": 0, **dataclasses.asdict(row)} for row in catalog.shards("ingest")]
    rows += [{**empty, "kind": "photo", "samples": 0, **dataclasses.asdict(row)} for row in catalog.photos()]
    lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
    assert catalog.content_digest() == hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_on_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="moa")
        store = S3Store("moa", "runs/one", endpoint)
        catalog = Catalog(store)
        row = store_shard(store, "ingest", "a", "f", b"bytes", 1)
        assert catalog.commit([row], [photo(1)]) == catalog.commit([row], [photo(1)]) == 0
        assert load_shard(store, catalog.shards("ingest")[0]) == b"bytes"
        catalog = write_at_once(S3Store("moa", "runs/two", endpoint), writers=2)
        assert len(catalog.photos()) == 3 + 2 * 3
    finally:
        server.stop()


def test_rows_travel_as_they_are() -> None:
    values = {field.name: f"its {field.name}" for field in dataclasses.fields(PhotoRow)}
    row = PhotoRow(**values)
    assert pickle.loads(pickle.dumps(row)) == row and dataclasses.asdict(row) == values
