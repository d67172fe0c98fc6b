"""What people ask of a catalog, on a directory and on S3."""

import hashlib
import re
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import DirectoryStore, ObjectStore
from preprocessing import lookup
from preprocessing.catalog import Catalog, PhotoRow, store_shard
from preprocessing.photos import Reason

PRESENT = {"ingest": "i", "segment": "new"}
BYTES = b"the photo's bytes"
KEY = hashlib.sha256(BYTES).hexdigest()


def kept(i: int, key: str = "") -> PhotoRow:
    return PhotoRow("ingest", "a", key or f"{i:064x}", "ffhq", f"0000{i}/{i}.png", "kept")


def refused(stage: str, i: int, reason: Reason, detail: str = "", key: str = "", shard: str = "") -> PhotoRow:
    return PhotoRow(stage, shard, key, "ffhq", f"0000{i}/{i}.png", "refused", reason, detail)


def filled(store: ObjectStore) -> Catalog:
    """Two versions: ingest of five photos; two segmentations of the shard, with other settings."""
    catalog = Catalog(store)
    photos = [kept(1, KEY), kept(2), kept(3)]
    photos += [refused("ingest", 4, Reason.DUPLICATE, key=KEY), refused("ingest", 5, Reason.TRUNCATED, "ends early")]
    catalog.commit([store_shard(store, "ingest", "a", "i", b"x" * 1500, 3, "ffhq")], photos)
    nobody = [refused("segment", i, Reason.NO_PERSON, key=f"{i:064x}", shard="a") for i in (2, 3)]
    catalog.commit([store_shard(store, "segment", "a", "old", b"old", 1, "ffhq")], nobody)
    catalog.commit([store_shard(store, "segment", "a", "new", b"newer", 2, "ffhq")], nobody[:1])
    return catalog


def test_the_summary_counts_every_photo_once(store: ObjectStore) -> None:
    found = lookup.summary(filled(store), store, PRESENT, 2)
    assert found["photos"] == [{"source": "ffhq", "seen": 5, "kept": 2, "refused": 3}]
    reasons = [(row["stage"], row["reason"], row["photos"]) for row in found["refused"]]
    assert reasons == [("ingest", "duplicate", 1), ("ingest", "truncated", 1), ("segment", "no_person", 1)]
    assert found["shards"] == [
        {"stage": "ingest", "shards": 1, "samples": 3, "older": 0, "bytes": 1500},
        {"stage": "segment", "shards": 1, "samples": 2, "older": 1, "bytes": 8},
    ]
    before = lookup.summary(Catalog(store), store, PRESENT, 0)
    assert before["photos"][0]["kept"] == 3 and [row["stage"] for row in before["shards"]] == ["ingest"]


def test_versions_and_what_lies_between_them(store: ObjectStore) -> None:
    catalog = filled(store)
    assert [(row["version"], row["rows"]) for row in lookup.versions(catalog)] == [(2, 2), (1, 3), (0, 6)]
    found = lookup.difference(catalog, 0, 2)
    assert found["gone"] == {"photos": [], "shards": []}
    assert [(row["stage"], row["fingerprint"], row["samples"]) for row in found["added"]["shards"]] == [
        ("segment", "new", 2),
        ("segment", "old", 1),
    ]
    (photos,) = found["added"]["photos"]
    assert (photos["stage"], photos["reason"], photos["photos"]) == ("segment", "no_person", 3)
    assert lookup.difference(catalog, 2, 0)["gone"] == found["added"]
    with pytest.raises(UserError, match="no version 7: choose 0 to 2"):
        lookup.checked_version(catalog, 7)
    assert lookup.checked_version(catalog, None) == 2


def test_why_a_photo_was_refused_and_where_one_is(store: ObjectStore, tmp_path: Path) -> None:
    catalog = filled(store)
    (truncated,) = lookup.why(catalog, "00005/5.png", PRESENT, 2)
    assert truncated["fate"].startswith("refused by ingest: truncated (") and "ends early" in truncated["fate"]
    (nobody,) = lookup.why(catalog, "2.png", PRESENT, 2)  # the end of its path
    assert "refused by segment: no_person" in nobody["fate"]
    (present,) = lookup.why(catalog, "3.png", PRESENT, 2)
    assert present["fate"] == "kept" and list(present["shards"]) == ["ingest", "segment"]
    assert all(store.exists(key) for key in present["shards"].values())
    assert "no_person" in lookup.why(catalog, "3.png", {"segment": "old"}, 2)[0]["fate"]
    file = tmp_path / "my copy.png"
    file.write_bytes(BYTES)
    for name in (str(file), KEY[:8], KEY.upper()):
        first, second = lookup.why(catalog, name, PRESENT, 2)
        assert first["fate"] == "kept" and "the same bytes as ffhq 00001/1.png" in second["fate"]
    assert lookup.why(catalog, "/somewhere/ffhq/00005/5.png", PRESENT, 2) == [truncated]
    with pytest.raises(UserError, match="knows no photo 'nobody.png'"):
        lookup.why(catalog, "nobody.png", PRESENT, 2)


def test_sql_over_photos_and_shards(store: ObjectStore) -> None:
    catalog = filled(store)
    found = lookup.query(catalog, "SELECT fate, count(*) AS n FROM photos GROUP BY fate ORDER BY fate", PRESENT, 2)
    assert found.rows() == [("kept", 2), ("refused", 3)]
    found = lookup.query(
        catalog,
        "SELECT s.stage, sum(samples) FROM shards s WHERE fingerprint <> 'old' GROUP BY 1 ORDER BY 1",
        PRESENT,
        2,
    )
    assert found.rows() == [("ingest", 3), ("segment", 2)]
    assert lookup.query(catalog, "SELECT count(*) FROM photo_rows", PRESENT, 0).item() == 5


def test_the_readmes_queries_answer(tmp_path: Path) -> None:
    text = Path(lookup.__file__).with_name("README.md").read_text("utf-8")
    queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    catalog = filled(DirectoryStore(tmp_path))
    answers = [lookup.query(catalog, sql, PRESENT, 2).rows() for sql in queries]
    assert len(answers) == 3
    assert ("ffhq", "segment", "no_person", 1) in answers[0] and len(answers[0]) == 3
    assert answers[1] == [("a", 3, 2)]
    assert [sorted(files) for _, files in answers[2]] == [["ffhq 00001/1.png", "ffhq 00004/4.png"]]


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM photos", "nothing"),
        ("COPY photos TO '/tmp/photos.csv'", "write a SELECT"),
        ("SELECT * FROM read_csv('/etc/passwd')", "disabled"),
        ("SELECT * FROM catalog", "catalog"),
        ("SET enable_external_access = true", "write a SELECT"),
        ("DROP VIEW photos; SELECT 1", "write a SELECT"),
        ("", "write a SELECT"),
        ("CREATE TABLE mine AS SELECT 1", "write a SELECT"),
    ],
)
def test_sql_that_cannot_be_answered_is_one_sentence(sql: str, says: str, tmp_path: Path) -> None:
    catalog = filled(DirectoryStore(tmp_path))
    with pytest.raises(UserError, match=says) as error:
        lookup.query(catalog, sql, None, 2)
    assert "\n" not in str(error.value)
    assert catalog.version == 2


def test_no_catalog_is_one_sentence(store: ObjectStore) -> None:
    with pytest.raises(UserError, match="no catalog here yet"):
        lookup.checked_version(Catalog(store), None)


def test_every_shard_is_read_and_what_is_damaged_is_named(store: ObjectStore) -> None:
    catalog, seen = filled(store), list[tuple[int, int]]()
    assert lookup.damaged(catalog, store, 2, lambda *how_far: seen.append(how_far)) == []
    assert seen == [(1, 3), (2, 3), (3, 3)]
    first, old, new = catalog.shards("ingest") + sorted(
        catalog.shards("segment"), key=lambda row: -len(row.fingerprint)
    )
    store.put(first.object_key, b"y" * 1500)
    store.delete(new.object_key)
    found = lookup.damaged(catalog, store, 2, lambda *_: None)
    assert sorted((row["stage"], row["key"]) for row in found) == [
        ("ingest", first.object_key),
        ("segment", new.object_key),
    ]
    assert {row["problem"] for row in found if row["stage"] == "segment"} == {"is missing"}
    assert len(lookup.damaged(catalog, store, 0, lambda *_: None)) == 1  # of an older version
