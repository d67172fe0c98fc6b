"""Rows in portions: all arrive, in their order, and a portion that fails is heard of."""

import threading
from pathlib import Path

import pytest

from infra.storage import DirectoryStore
from preprocessing.catalog import Catalog, PhotoRow, ShardRow
from preprocessing.commits import CommitBuffer


def rows(i: int) -> tuple[list[ShardRow], list[PhotoRow]]:
    name = f"s{i:03}"
    photo = PhotoRow("ingest", name, f"key{i}", "folder", f"{i}.jpg", "kept")
    return [ShardRow("ingest", name, "f", f"shards/ingest/{name}.tar", "0" * 64, 1)], [photo]


def test_portions_by_number_hold_the_rows_in_their_order(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    with CommitBuffer(catalog, seconds=1000, shards=4) as buffer:
        for i in range(10):
            buffer.add(*rows(i))
            assert len(catalog.shards("ingest")) == (i + 1) // 4 * 4
    assert buffer.commits == 3 and catalog.version == 2
    assert [row.shard for row in catalog.shards("ingest", version=1)] == [f"s{i:03}" for i in range(8)]
    assert len(catalog.photos("ingest", version=1)) == 8 and len(catalog.photos()) == 10


def test_time_alone_commits_too(tmp_path: Path) -> None:
    """The next shard may take minutes, and a crash must not cost the last one."""
    catalog, done = Catalog(DirectoryStore(tmp_path)), threading.Event()
    with CommitBuffer(catalog, seconds=0.01, shards=1000) as buffer:
        buffer.add(*rows(0))
        for _ in range(3000):
            if Catalog(DirectoryStore(tmp_path)).shards("ingest"):
                break
            done.wait(0.01)
        assert [row.shard for row in catalog.shards("ingest")] == ["s000"]
    assert catalog.version == 0


def test_an_error_in_the_block_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    with pytest.raises(RuntimeError, match="the model"), CommitBuffer(catalog) as buffer:
        buffer.add(*rows(0))
        raise RuntimeError("the model died")
    assert [row.shard for row in catalog.shards("ingest")] == ["s000"]


def test_a_commit_that_fails_is_raised(tmp_path: Path) -> None:
    (tmp_path / "catalog").write_text("in the way")
    with pytest.raises(Exception, match="catalog|directory"), CommitBuffer(Catalog(DirectoryStore(tmp_path))) as buffer:
        buffer.add(*rows(0))
