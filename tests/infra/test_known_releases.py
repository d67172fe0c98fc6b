"""What a registry was last heard to hold."""

import os
import time
from pathlib import Path

from infra.known_releases import KnownReleases
from infra.manifest import Content, describe_name, make_manifest
from infra.release_names import Release

MANIFEST = make_manifest("moa", [describe_name("a", Content(1, "ab" * 32))])
OTHER = make_manifest("moa", [describe_name("b", Content(1, "ab" * 32))])
ONE, TWO = Release(1, MANIFEST.id), Release(2, OTHER.id)


def test_a_release_is_recalled_by_number_id_and_name(tmp_path: Path) -> None:
    known = KnownReleases(tmp_path, "s3://bucket/prefix")
    assert known.models() == [] and known.recall("moa", "1") is None
    known.remember("moa", "production", ONE, MANIFEST)
    known.remember("moa", "2", TWO, OTHER)
    assert known.models() == ["moa"]
    for which, release in (("1", ONE), ("0001", ONE), (ONE.id, ONE), ("2", TWO), (TWO.id, TWO)):
        found = known.recall("moa", which)
        assert found is not None and found.release == release and found.age == 0
    found = known.recall("moa", "production")
    assert found is not None and (found.release, found.manifest) == (ONE, MANIFEST) and 0 < found.age < 60
    note = next(tmp_path.rglob("names/production"))
    os.utime(note, (time.time() - 7200,) * 2)
    found = known.recall("moa", "production")
    assert found is not None and 7100 < found.age < 7300
    for which in ("3", "0" * 16, "staging"):
        assert known.recall("moa", which) is None
    assert known.recall("other", "1") is None and KnownReleases(tmp_path, "s3://other").recall("moa", "1") is None


def test_damaged_notes_are_nothing_known(tmp_path: Path) -> None:
    known = KnownReleases(tmp_path, "x")
    known.remember("moa", "production", ONE, MANIFEST)
    note = next(tmp_path.rglob("names/production"))
    for damage in (b"", b"{}", b"[]", b'{"number": 1, "id": "%s"}' % (b"0" * 16), b'{"number": "x"}'):
        note.write_bytes(damage)
        assert known.recall("moa", "production") is None
    next(tmp_path.rglob("0001.json")).write_bytes(b"{")
    assert known.recall("moa", "1") is None


def test_what_cannot_be_written_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "known").write_text("in the way")
    known = KnownReleases(tmp_path, "x")
    known.remember("moa", "production", ONE, MANIFEST)
    assert known.recall("moa", "1") is None and known.models() == []
