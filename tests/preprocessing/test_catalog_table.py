"""Few files, read once: neither may change what a version says."""

import json
from pathlib import Path

import polars

from infra.storage import DirectoryStore, ObjectStore
from preprocessing.catalog import Catalog, PhotoRow, ShardRow
from preprocessing.catalog_table import CatalogTable

COLUMNS = {"kind": polars.String, "name": polars.String}


def rows(*names: str, kind: str = "photo") -> polars.DataFrame:
    return polars.DataFrame([(kind, name) for name in names], schema=COLUMNS, orient="row")


def names(table: CatalogTable, version: int | None = None) -> list[str]:
    return sorted(table.frame("photo", version)["name"])


def filled(store: ObjectStore, commits: int) -> CatalogTable:
    table = CatalogTable(store, "table", COLUMNS)
    for i in range(commits):
        assert table.version == i - 1 and table.append(rows(f"{i:03}"), i - 1)
    return table


def test_a_new_version_costs_the_files_that_it_added(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    table = filled(store, 3)
    assert names(table) == ["000", "001", "002"]
    for path in (tmp_path / "table").rglob("*.parquet"):
        path.unlink()  # what was read is not read again
    other = CatalogTable(store, "table", COLUMNS)
    assert other.version == 2 and other.append(rows("003"), 2)
    assert names(table) == ["000", "001", "002", "003"]


def test_an_append_is_for_the_version_that_was_looked_at(tmp_path: Path) -> None:
    one, two = (CatalogTable(DirectoryStore(tmp_path), "table", COLUMNS) for _ in range(2))
    assert one.version == two.version == -1
    assert one.append(rows("a"), -1) and not two.append(rows("b"), -1)
    assert two.version == 0 and two.append(rows("b"), 0)
    assert not one.append(rows("c"), 0)
    assert names(one) == ["a", "b"]


def test_merging_files_changes_no_version(store: ObjectStore) -> None:
    """The same on a directory and on S3: few files afterwards, old versions as before, and one merger of two."""
    table = filled(store, 66)
    stale = CatalogTable(store, "table", COLUMNS)
    assert stale.version == 65
    everything = names(table)
    assert table.compact() and not table.compact()
    assert not stale.compact()  # it looked at a version that is not the last any more: no row is there twice
    assert stale.version == table.version == 66
    assert table.append(rows("new"), 66) and table.append(rows("shard", kind="shard"), 67)
    for reader in (table, stale, CatalogTable(store, "table", COLUMNS)):
        assert names(reader) == [*everything, "new"]
        assert names(reader, 66) == names(reader, 65) == everything
        assert names(reader, 40) == everything[:41]
    assert reader.history()[2]["operation"] == "OPTIMIZE"
    files = [key for key in store.list("table/kind=photo/") if "merged" in key]
    assert len(files) == 1 and store.exists(f"table/_delta_log/{66:020}.checkpoint.parquet")


def test_other_readers_of_delta_see_the_same(tmp_path: Path) -> None:
    from deltalake import DeltaTable, QueryBuilder

    filled(DirectoryStore(tmp_path), 66).compact()
    query = QueryBuilder().register("t", DeltaTable(str(tmp_path / "table")))
    assert polars.DataFrame(query.execute("select count(*) as n from t").read_all())["n"].to_list() == [66]
    assert polars.read_delta(str(tmp_path / "table")).height == 66


def test_commits_keep_the_number_of_files_bounded(tmp_path: Path) -> None:
    catalog = Catalog(DirectoryStore(tmp_path))
    for i in range(40):
        photo = PhotoRow("ingest", f"{i}", f"key{i}", "folder", f"{i}.jpg", "kept")
        catalog.commit([ShardRow("ingest", f"{i}", "f", f"shards/{i}.tar", "0" * 64, 1)], [photo])
    log = sorted((tmp_path / "catalog" / "_delta_log").glob("*.json"))
    actions = [json.loads(line) for path in log for line in path.read_text().splitlines()]
    active = {a["add"]["path"] for a in actions if "add" in a} - {a["remove"]["path"] for a in actions if "remove" in a}
    assert len(active) <= 64 and len(log) == 41
    assert len(catalog.shards("ingest")) == len(Catalog(DirectoryStore(tmp_path)).photos()) == 40


def test_a_question_makes_no_folder(tmp_path: Path) -> None:
    assert Catalog(DirectoryStore(tmp_path / "store")).version == -1
    assert not (tmp_path / "store").exists()
