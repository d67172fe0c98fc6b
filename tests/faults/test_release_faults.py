"""Publishers who are killed at any write to S3, and answers that are lost on their way."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.registry import Release, Releases
from infra.storage import S3Store
from infra.upkeep import verify
from tests.infra.conftest import proxy, s3_store
from tests.infra.faulty_s3 import FaultyS3

__all__ = ["proxy", "s3_store"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Two parts of an upload."""
    (tmp_path / "weights").write_bytes(os.urandom(1000) * 17_000)
    return tmp_path / "weights"


def whole(store: S3Store, weights: Path) -> Release:
    """A publisher's work, from the first write to the last."""
    releases = Releases(store)
    release = releases.publish({"adapter.bin": weights, "README.md": b"card"}, {"run_id": "r"})
    releases.promote("production", release.id, "passed")
    return release


def test_a_publisher_killed_at_any_write_leaves_a_whole_release_or_none(
    s3_store: S3Store, proxy: FaultyS3, weights: Path
) -> None:
    name, data = s3_store.prefix, weights.read_bytes()
    killed = S3Store(s3_store.bucket, f"{name}/peace", proxy.address, attempts=1)
    whole(killed, weights)
    writes, seen = proxy.writes, set()
    assert writes == 14  # twice 3 for a probe, 2 small files, 4 for a large one, the manifest, the move
    for last in range(1, writes + 1):
        killed.prefix = s3_store.prefix = f"{name}/{last}"  # a client of its own for each would take longer
        proxy.writes, proxy.last_write = 0, last
        with suppress(UserError):
            whole(killed, weights)
        proxy.last_write = None
        store, left = s3_store, Releases(s3_store)
        seen.add((len(left.all()), left.current("production") is not None))
        assert verify(left) == [] and all(left.read(one, "adapter.bin") == data for one in left.all())
        release = whole(store, weights)
        assert left.all() == [release] == Releases(store).all() and release.number == 1
        assert [move.release for move in Releases(store).history("production")] == [release]
        assert verify(Releases(store)) == [] and len(store.list("blobs/")) == 3
    assert seen == {(0, False), (1, False), (1, True)}


@pytest.mark.parametrize("part", ["manifest.json", "names/", "blobs/", "partNumber=", "uploads", "uploadId="])
def test_an_answer_that_is_lost_changes_nothing(s3_store: S3Store, proxy: FaultyS3, weights: Path, part: str) -> None:
    """The request arrived, its answer did not, and it is sent again."""
    proxy.faults[part] = ["lost", ""]
    release = whole(S3Store(s3_store.bucket, s3_store.prefix, proxy.address), weights)
    releases = Releases(s3_store)
    assert releases.all() == [release] and releases.current("production") == release
    assert len(releases.history("production")) == 1 and verify(releases) == []


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["500", "503", "reset", "skewed"])
def test_what_stays_wrong_is_one_sentence_and_no_half_of_a_release(
    s3_store: S3Store, proxy: FaultyS3, weights: Path, fault: str
) -> None:
    """At each part of a publisher's work in turn; afterwards the same work ends well."""
    name = s3_store.prefix
    publisher = S3Store(s3_store.bucket, name, proxy.address, attempts=2)
    for number, part in enumerate(("probes/", "blobs/", "partNumber=", "manifest.json", "names/")):
        publisher.prefix = s3_store.prefix = f"{name}/{number}"
        proxy.faults = {part: [fault]}
        with pytest.raises(UserError, match="cannot be used") as refusal:
            whole(publisher, weights)
        assert "\n" not in str(refusal.value)
        proxy.faults = {}
        left = Releases(s3_store)
        assert len(left.all()) == (part == "names/") and left.current("production") is None and verify(left) == []
        release = whole(publisher, weights)
        assert Releases(s3_store).all() == [release] == [Releases(s3_store).current("production")]
