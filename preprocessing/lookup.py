"""What people ask a catalog: how much of what there is, what changed, why a photo was refused, and anything in SQL."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars

from infra.errors import UserError
from infra.storage import ObjectStore
from preprocessing.catalog import Catalog, load_shard
from preprocessing.photos import Reason

Fingerprints = Mapping[str, str] | None
_SHORTEST_KEY = 6  # hex digits that tell photos apart
_MAX_EXAMPLES = 5


def checked_version(catalog: Catalog, version: int | None) -> int:
    """The version itself, the newest for None. UserError where there is none such."""
    newest = catalog.version
    if newest < 0:
        raise UserError("There is no catalog here yet: moa ingest makes it, or name its --workspace.")
    if version is None:
        return newest
    if not 0 <= version <= newest:
        raise UserError(f"The catalog has no version {version}: choose 0 to {newest}, or see moa catalog versions.")
    return version


def summary(catalog: Catalog, store: ObjectStore, fingerprints: Fingerprints, version: int) -> dict[str, Any]:
    """{"version", "photos": per source, "refused": per source, stage and reason, "shards": per stage}.

    Every photo is counted once. Shards of other settings than the present ones are counted under "older"; "bytes" is
    what all of a stage's shards take up in the store.
    """
    fates = catalog.fates(fingerprints, version)
    kept = polars.col("reason") == ""
    photos = fates.group_by("source").agg(seen=polars.len(), kept=kept.sum(), refused=(~kept).sum()).sort("source")
    reasons = fates.filter(~kept).group_by("source", "stage", "reason").agg(photos=polars.len())
    shards = catalog.shard_frame(version=version)
    shards = _with_present(shards, fingerprints)
    stages = shards.group_by("stage").agg(
        shards=polars.col("present").sum(),
        samples=polars.col("samples").filter("present").sum(),
        older=(~polars.col("present")).sum(),
    )
    sizes = store.sizes("shards/")
    held = shards.select("stage", "object_key").unique()
    held = held.with_columns(bytes=polars.Series([sizes.get(key, 0) for key in held["object_key"]], dtype=polars.Int64))
    stages = stages.join(held.group_by("stage").agg(polars.col("bytes").sum()), on="stage", how="left")
    return {
        "version": version,
        "photos": photos.to_dicts(),
        "refused": reasons.sort(
            "source", "stage", "photos", "reason", descending=[False, False, True, False]
        ).to_dicts(),
        "shards": stages.sort("stage").to_dicts(),
    }


def _with_present(shards: polars.DataFrame, fingerprints: Fingerprints) -> polars.DataFrame:
    """The shards with a column that says which are of the present settings; all, where those are not known."""
    if fingerprints is None:
        return shards.with_columns(present=polars.lit(True))
    return shards.with_columns(present=polars.col("fingerprint").is_in(list(fingerprints.values())))


def damaged(
    catalog: Catalog, store: ObjectStore, version: int, advance: Callable[[int, int], None]
) -> list[dict[str, str]]:
    """Every shard that the version names is read: those that are gone or have other bytes, as {"stage", "shard", "key",
    "problem"}. `advance` hears how many of how many were read."""
    rows, found = catalog.shards(version=version), []
    for number, row in enumerate(rows, 1):
        if row.object_key:  # a stage that only says what is done has no bytes
            try:
                load_shard(store, row)
            except (KeyError, ValueError) as error:
                problem = "is missing" if isinstance(error, KeyError) else str(error)
                found.append({"stage": row.stage, "shard": row.shard, "key": row.object_key, "problem": problem})
        advance(number, len(rows))
    return found


def versions(catalog: Catalog) -> list[dict[str, Any]]:
    """Each version, newest first: {"version", "when" (UTC), "what", "rows" that it added}."""
    checked_version(catalog, None)
    made = []
    for entry in catalog.history():
        metrics = entry.get("operationMetrics") or {}
        merged = entry.get("operation") == "OPTIMIZE"
        made.append(
            {
                "version": entry["version"],
                "when": datetime.fromtimestamp(entry["timestamp"] / 1000, UTC).isoformat(timespec="seconds"),
                "what": "the same rows in fewer files" if merged else "rows added",
                "rows": 0 if merged else metrics.get("num_added_rows"),
            }
        )
    return made


def difference(catalog: Catalog, old: int, new: int) -> dict[str, Any]:
    """What `new` says and `old` does not, and the other way round (nothing, unless they were named in that order).

    {"added" and "gone": {"photos": per stage, status and reason with examples, "shards": per stage and fingerprint}}
    """

    def only_in(one: int, other: int) -> dict[str, Any]:
        photos, shards = (
            frame(version=one).join(frame(version=other), on=identity, how="anti")
            for frame, identity in (
                (catalog.photo_frame, ["stage", "shard", "key", "source", "origin", "fingerprint"]),
                (catalog.shard_frame, ["stage", "shard", "fingerprint"]),
            )
        )
        groups = photos.group_by("stage", "source", "status", "reason").agg(
            photos=polars.len(), examples=polars.col("origin").sort().head(_MAX_EXAMPLES)
        )
        made = shards.group_by("stage", "fingerprint").agg(shards=polars.len(), samples=polars.col("samples").sum())
        return {
            "photos": groups.sort("stage", "source", "status", "reason").to_dicts(),
            "shards": made.sort("stage", "fingerprint").to_dicts(),
        }

    return {"old": old, "new": new, "added": only_in(new, old), "gone": only_in(old, new)}


def why(catalog: Catalog, photo: str, fingerprints: Fingerprints, version: int) -> list[dict[str, Any]]:
    """What became of the photos of that name: a path inside a source, the beginning of a key, or a file here.

    Each: {"source", "origin", "key", "fate": a sentence, "stage", "reason", "detail", "shards": its shards by stage}.
    Raises UserError where no photo has the name.
    """
    fates = catalog.fates(fingerprints, version)
    found = _named(fates, photo)
    if found.is_empty():
        raise UserError(
            f"The catalog's version {version} knows no photo {photo!r}: give its path inside the source, the first "
            f"{_SHORTEST_KEY} or more digits of its key, or the file."
        )
    shards = catalog.shard_frame(version=version)
    if fingerprints is not None:
        shards = shards.filter(polars.col("fingerprint").is_in(list(fingerprints.values())))
    return [_told(row, fates, shards) for row in found.sort("source", "origin").iter_rows(named=True)]


def _named(fates: polars.DataFrame, photo: str) -> polars.DataFrame:
    origin = polars.col("origin")
    found = fates.filter(origin == photo)
    digits = photo.lower()
    if found.is_empty() and len(digits) >= _SHORTEST_KEY and set(digits) <= set("0123456789abcdef"):
        found = fates.filter(polars.col("key").str.starts_with(digits))
    if found.is_empty() and Path(photo).is_file():
        with open(photo, "rb") as file:
            found = fates.filter(key=hashlib.file_digest(file, "sha256").hexdigest())
    if found.is_empty():  # a longer path that ends in the origin, or a shorter one that the origin ends in
        tail = "/" + photo.lstrip("/")
        found = fates.filter(polars.lit(tail).str.ends_with("/" + origin) | origin.str.ends_with(tail))
    return found


def _told(row: dict[str, Any], fates: polars.DataFrame, shards: polars.DataFrame) -> dict[str, Any]:
    if row["reason"]:
        meaning = {reason.value: reason.sentence for reason in Reason}.get(row["reason"], "")
        fate = f"refused by {row['stage']}: {row['reason']}"
        fate += "".join(f" ({text})" for text in dict.fromkeys([meaning, row["detail"]]) if text)
        twins = fates.filter((polars.col("key") == row["key"]) & (polars.col("origin") != row["origin"]))
        if row["reason"] == Reason.DUPLICATE.value and not twins.is_empty():
            fate += "; the same bytes as " + ", ".join(
                f"{one['source']} {one['origin']}" for one in twins.to_dicts()[:3]
            )
    else:
        fate = "kept"
    mine = shards.filter(polars.col("shard") == row["shard"]).sort("stage") if row["shard"] else shards.clear()
    return {**row, "fate": fate, "shards": dict(zip(mine["stage"], mine["object_key"], strict=True))}


def query(catalog: Catalog, sql: str, fingerprints: Fingerprints, version: int) -> polars.DataFrame:
    """A question in DuckDB's SQL over three views of the version.

    photos: every photo once, with `fate` ("kept", "refused") and stage, reason and detail of a refusal; photo_rows: all
    that stages wrote about photos; shards: every finished shard, `present` where it is of the present settings. Nothing
    can be written, and no file be read: the database is in memory and shut off from the rest. Raises UserError where
    DuckDB does not understand.
    """
    import duckdb

    fates = catalog.fates(fingerprints, version)
    fate = polars.when(polars.col("reason") == "").then(polars.lit("kept")).otherwise(polars.lit("refused"))
    tables = {
        "photos": fates.with_columns(fate=fate),
        "photo_rows": catalog.photo_frame(version=version),
        "shards": _with_present(catalog.shard_frame(version=version), fingerprints),
    }
    settings: dict[str, Any] = {"enable_external_access": "false", "python_enable_replacements": "false"}
    with duckdb.connect(":memory:", config=settings) as database:
        for name, frame in tables.items():
            database.register(name, frame.to_arrow())
        database.execute("SET lock_configuration = true")
        try:
            kinds = {statement.type for statement in database.extract_statements(sql)}
            if kinds and kinds <= {duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN}:
                return polars.DataFrame(database.sql(sql).to_arrow_table())
        except duckdb.Error as error:
            said = " ".join(str(error).split("\n\n")[0].split())
            raise UserError(f"DuckDB does not take this query ({said}): mend the SQL.") from error
    raise UserError("The catalog is only read here: write a SELECT.")
