"""Where photos are: the shards, catalog versions, releases and evaluations that contain or show them, exactly."""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from flows.evaluation_people import PEOPLE
from flows.evaluation_pictures import OLD_PICTURES, unpacked
from flows.run import Run
from infra.registry import Release
from preprocessing.catalog import FORGET, KEPT, Catalog, ShardRow
from preprocessing.forgetting import forgotten_keys, forgotten_people, purgeable
from preprocessing.training_photos import training_photos

EVALUATED = ("runs", "models-evaluated", "releases-evaluated")
"""Where evaluations lie."""
_EVALUATION = re.compile(rf"(?P<folder>.+)/(?:{re.escape(PEOPLE)}|drawn/[^/]+\.tar|{re.escape(OLD_PICTURES)})")


@dataclass(frozen=True)
class ReleaseHolding:
    """A release and how many of the photos it was trained on; `through`: the release that it learned others from."""

    release: Release
    photos: int
    through: Release | None = None


@dataclass(frozen=True)
class Holdings:
    """shards: of every stage and setting, also those that were replaced since. versions: first and last of the catalog
    that have one of the photos, None where none has. evaluations: folders of those that show the person, or
    used a photo.
    """

    shards: list[ShardRow]
    versions: tuple[int, int] | None
    releases: list[ReleaseHolding] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)


def holdings(run: Run, keys: Collection[str], person: str = "") -> Holdings:
    """What contains the photos with these keys or shows the person ("source:identity"), now or in earlier versions."""
    wanted = set(keys)
    names = {
        row.shard
        for row in run.catalog.photos("ingest", replaced=True)
        if row.key in wanted and row.status == KEPT and row.shard
    }
    shards = [
        row for row in run.catalog.shards(replaced=True) if row.stage != FORGET and row.shard.partition("-")[0] in names
    ]
    evaluations = evaluations_showing(run, wanted, {person} - {""})
    return Holdings(shards, versions_holding(run.catalog, wanted), releases_holding(run, wanted), evaluations)


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


def evaluations_showing(run: Run, keys: Collection[str], people: Collection[str]) -> list[str]:
    """Folders of the evaluations whose pictures show one of the people ("source:identity") or one of the photos.

    One of an earlier version does not say of which source its people are, nor which photos it used: it goes by the
    identity alone.
    """
    folders: dict[str, set[str]] = {}
    for root in EVALUATED:
        for key in run.store.list(f"{root}/"):
            if found := _EVALUATION.fullmatch(key):
                folders.setdefault(found["folder"], set()).add(key)
    return [folder for folder, files in sorted(folders.items()) if _shows(run, folder, files, keys, people)]


def objects_of_forgotten(run: Run) -> list[str]:
    """The objects that may hold a forgotten photo, or pictures of a forgotten person. Nobody may be writing."""
    keys, people = forgotten_keys(run.catalog), forgotten_people(run.catalog)
    shown = evaluations_showing(run, keys, people) if keys or people else []
    evaluated = [key for folder in shown for key in run.store.list(f"{folder}/")]
    return [*purgeable(run.store, run.catalog), *evaluated]


def _shows(run: Run, folder: str, files: Collection[str], keys: Collection[str], people: Collection[str]) -> bool:
    if f"{folder}/{PEOPLE}" in files:
        about = json.loads(run.store.get(f"{folder}/{PEOPLE}"))
        return any(
            f"{about['source']}:{one['name']}" in people or not set(keys).isdisjoint(one["photos"])
            for one in about["people"]
        )
    drawn = [key for key in files if key.endswith(".tar")]
    names = {name for key in drawn for cell, _, _ in unpacked(run.store.get(key)) for name in cell.names}
    return not names.isdisjoint(person.rpartition(":")[2] for person in people)


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
