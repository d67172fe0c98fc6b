"""Where photos are: the shards, catalog versions and releases that contain them, exactly."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from flows.run import Run
from infra.registry import Release
from preprocessing.catalog import FORGET, KEPT, Catalog, ShardRow
from preprocessing.training_photos import training_photos


@dataclass(frozen=True)
class ReleaseHolding:
    """A release and how many of the photos it was trained on; `through`: the release that it learned others from."""

    release: Release
    photos: int
    through: Release | None = None


@dataclass(frozen=True)
class Holdings:
    """shards: of every stage and setting, also those that were replaced since. versions: first and last of the catalog
    that have one of the photos, None where none has."""

    shards: list[ShardRow]
    versions: tuple[int, int] | None
    releases: list[ReleaseHolding] = field(default_factory=list)


def holdings(run: Run, keys: Collection[str]) -> Holdings:
    """What contains the photos with these keys, now or in an earlier version."""
    wanted = set(keys)
    names = {
        row.shard
        for row in run.catalog.photos("ingest", replaced=True)
        if row.key in wanted and row.status == KEPT and row.shard
    }
    shards = [
        row for row in run.catalog.shards(replaced=True) if row.stage != FORGET and row.shard.partition("-")[0] in names
    ]
    return Holdings(shards, versions_holding(run.catalog, wanted), releases_holding(run, wanted))


def versions_holding(catalog: Catalog, keys: set[str]) -> tuple[int, int] | None:
    """The first and the last version in which one of the photos is kept."""
    newest = catalog.version

    def came(version: int) -> bool:
        rows = catalog.photos("ingest", version, replaced=True)
        return any(row.key in keys and row.status == KEPT for row in rows)

    def went(version: int) -> bool:
        return keys <= {row.key for row in catalog.photos(FORGET, version)}

    if newest < 0 or not came(newest):
        return None
    # Rows only ever come, so both questions have one turning point.
    return _first(came, newest), _first(went, newest) - 1 if went(newest) else newest


def releases_holding(run: Run, keys: set[str]) -> list[ReleaseHolding]:
    """The releases that were trained on one of the photos, or that started from one that was, oldest first.

    A release's card names its catalog version and how each stage was done: from these, what it was trained on.
    """
    found: dict[str, ReleaseHolding] = {}
    trained_on: dict[str, set[str]] = {}
    for release in run.releases.all():
        card: dict[str, Any] = run.releases.card(release)
        if "stages" not in card or "catalog_version" not in card:
            continue  # not one of ours
        what = f"{card['catalog_version']} {card['stages']}"
        if what not in trained_on:
            trained_on[what] = keys & training_photos(run.catalog, card["stages"], card["catalog_version"]).keys()
        start = str(card.get("start", ""))
        before = found.get(start.removeprefix("release:")) if start.startswith("release:") else None
        if trained_on[what] or before:
            through = before.release if before and not trained_on[what] else None
            found[release.id] = ReleaseHolding(release, len(trained_on[what]), through)
    return list(found.values())


def ancestors(run: Run, start: str) -> list[Release]:
    """The release that a training's `start` names, the one from which that was trained, and so on."""
    found: list[Release] = []
    while start.startswith("release:"):
        release = run.releases.resolve(start.removeprefix("release:"))
        card = run.releases.card(release)
        if "stages" not in card or "catalog_version" not in card:
            break  # not one of ours
        found.append(release)
        start = str(card.get("start", ""))
    return found


def _first(holds: Callable[[int], bool], known: int) -> int:
    """The first number from 0 on for which it holds; it does for `known` and for all from the first on."""
    low, high = 0, known
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return high
