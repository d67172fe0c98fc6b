"""Photos that are taken back: out of every later version of the catalog, and never let in again.

A forgotten photo has a row of stage "forget" with the reason that was given. Each shard that held it is replaced by one
without it, in every stage, made of the old shard's bytes: no model runs, and the other samples keep theirs. One
commit does all of it, so a crash leaves either the old state or the new one. Old objects stay for old versions until
`purge` deletes them. There is no way back: a promise that a switch undoes is none.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from infra.errors import UserError
from infra.storage import ObjectStore
from preprocessing.catalog import FORGET, KEPT, NOTED, REFUSED, Catalog, PhotoRow, ShardRow, load_shard, store_shard
from preprocessing.ingesting import shard_name
from preprocessing.photos import PhotoRefused, Reason, read_bytes
from preprocessing.shards import UnsafeTar, read_tar, without_samples

_PERSON = "person:"
_SHORTEST_PREFIX = 8  # of a key: one in four billion photos by chance
Progress = Callable[[int, int], None]
_Row = TypeVar("_Row", PhotoRow, ShardRow)


@dataclass(frozen=True)
class Found:
    """What a request names. photos: one row per (source, origin). person: "source:identity", "" where none is meant.

    key: bytes that no photo of the catalog has, to be refused if they come.
    """

    photos: list[PhotoRow]
    person: str = ""
    key: str = ""

    @property
    def keys(self) -> set[str]:
        """Of the photos whose bytes were read."""
        return {row.key for row in self.photos if row.key}


def find_photo(catalog: Catalog, text: str) -> Found:
    """The photo that `text` names: an origin, "source:origin", the first 8 or more hex digits of a key, or a file.

    All names under which its bytes came are found with it. Raises UserError where several photos are meant or none.
    """
    rows = _by_name(catalog.photos("ingest", replaced=True))
    named = [row for row in rows if text in (row.origin, f"{row.source}:{row.origin}")]
    if not named and len(text) >= _SHORTEST_PREFIX:
        named = [row for row in rows if row.key.startswith(text)]
    if not named:
        try:
            key = hashlib.sha256(read_bytes(Path(text).expanduser())).hexdigest()
        except PhotoRefused as refusal:
            raise UserError(
                f"No photo here is called {text[:200]!r}: give its name in its source, the first {_SHORTEST_PREFIX} or "
                "more digits of its SHA-256, or the path of its file."
            ) from refusal
        named = [row for row in rows if row.key == key]
        if not named:
            return Found([], key=key)
    # A photo that was out of reach at first has a row without a key, too.
    read = {(row.source, row.origin) for row in named if row.key}
    unread = {(row.source, row.origin) for row in named} - read
    if len({row.key for row in named if row.key}) + len(unread) > 1:
        names = ", ".join(f"{row.source}:{row.origin}" for row in named[:3])
        raise UserError(f"{text[:200]!r} names {len(named)} photos ({names} …): write SOURCE:ORIGIN or more digits.")
    keys = {row.key for row in named if row.key}
    return Found([row for row in rows if row in named or row.key in keys])


def find_person(store: ObjectStore, catalog: Catalog, person: str, progress: Progress = lambda done, of: None) -> Found:
    """All photos of somebody, named as "source:identity": the shards of that source are read through."""
    source = person.rpartition(":")[0]
    if not source or not person.rpartition(":")[2]:
        raise UserError(f"{person!r} names nobody: write SOURCE:IDENTITY, as celeba:2880.")
    keys: set[str] = set()
    shards = [row for row in catalog.shards("ingest") if row.source == source]
    for done, row in enumerate(shards, start=1):
        for sample in read_tar(load_shard(store, row)):
            about = sample.json()
            if about.get("source") == source and str(about.get("identity") or "") == person.rpartition(":")[2]:
                keys.add(sample.key)
        progress(done, len(shards))
    return Found([row for row in _by_name(catalog.photos("ingest", replaced=True)) if row.key in keys], person)


def find_older(catalog: Catalog, before: float) -> Found:
    """The photos that were kept by this time [seconds since 1970, by the clocks of those who wrote the catalog]."""
    versions = [entry["version"] for entry in catalog.history() if entry["timestamp"] / 1000 <= before]
    if not versions:
        return Found([])
    rows = catalog.photos("ingest", version=max(versions))
    return Found(_by_name(row for row in rows if row.status == KEPT))


def unforgotten(catalog: Catalog, found: Found) -> Found:
    """What of it is not forgotten yet."""
    rows = catalog.photos(FORGET)
    done = {(row.source, row.origin, row.key) for row in rows}
    photos = [row for row in found.photos if (row.source, row.origin, row.key) not in done]
    person = "" if found.person in forgotten_people(catalog) else found.person
    return Found(photos, person, "" if found.key in {row.key for row in rows} else found.key)


def shards_to_replace(catalog: Catalog, keys: Iterable[str]) -> dict[str, set[str]]:
    """Shard → the keys that it has to lose."""
    wanted, shards = set(keys), dict[str, set[str]]()
    for row in catalog.photos("ingest"):
        if row.key in wanted and row.status == KEPT and row.shard:
            shards.setdefault(row.shard, set()).add(row.key)
    return dict(sorted(shards.items()))


def forget(
    store: ObjectStore, catalog: Catalog, found: Found, reason: str, progress: Progress = lambda done, of: None
) -> int:
    """Forget what was found; repeating it, also after a crash at any moment, changes nothing. Returns the version.

    Nobody else may be writing to the catalog.
    """
    found = unforgotten(catalog, found)
    about = (REFUSED, Reason.FORGOTTEN.value, reason)
    photos = [PhotoRow(FORGET, "", row.key, row.source, row.origin, *about) for row in found.photos]
    if found.person:
        source, _, identity = found.person.rpartition(":")
        photos.append(PhotoRow(FORGET, "", "", source, _PERSON + identity, NOTED, *about[1:]))
    if found.key:
        photos.append(PhotoRow(FORGET, "", found.key, "", "", NOTED, *about[1:]))
    shards: list[ShardRow] = []
    all_shards, all_photos = _by_shard(catalog.shards()), _by_shard(catalog.photos())
    replacing = shards_to_replace(catalog, found.keys)
    for done, (name, gone) in enumerate(replacing.items(), start=1):
        family, of_shard = all_shards[name], all_photos[name]
        left = {row.key for row in of_shard if row.stage == "ingest" and row.status == KEPT} - gone
        if left:
            new_name = shard_name(left)
            shards += [new for row in family if (new := _replaced(store, row, name, new_name, gone)) is not None]
            photos += [
                replace(row, shard=row.shard.replace(name, new_name, 1)) for row in of_shard if row.key not in gone
            ]
        shards.append(ShardRow(FORGET, name, "", "", "", 0, family[0].source))
        progress(done, len(replacing))
    return catalog.commit(shards, photos)


def forgotten_keys(catalog: Catalog) -> dict[str, str]:
    """Key → the reason that was given, of every photo that must not come back."""
    return {row.key: row.detail for row in catalog.photos(FORGET) if row.key}


def forgotten_people(catalog: Catalog) -> dict[str, str]:
    """ "source:identity" → the reason that was given."""
    rows = [row for row in catalog.photos(FORGET) if row.status == NOTED and row.origin.startswith(_PERSON)]
    return {f"{row.source}:{row.origin.removeprefix(_PERSON)}": row.detail for row in rows}


def purgeable(store: ObjectStore, catalog: Catalog) -> list[str]:
    """The objects that may hold a forgotten photo: shards that were replaced, what a killed run left of others, and
    whatever has the name of such a shard or the photo's key in its own. Nobody may be writing."""
    current = {row.object_key for row in catalog.shards()}
    marks = [row.shard for row in catalog.shards(FORGET)] + list(forgotten_keys(catalog))

    def may_hold(key: str) -> bool:
        named_after = any(mark in key.rpartition("/")[2] for mark in marks)
        return key not in current and (named_after or key.startswith("shards/") and key.endswith(".tar"))

    return [key for key in store.list() if may_hold(key)] if marks else []


def _replaced(store: ObjectStore, row: ShardRow, name: str, new_name: str, gone: set[str]) -> ShardRow | None:
    """The shard without those photos, stored; None for one that only an earlier setting needs and that is no more."""
    try:
        tar = without_samples(load_shard(store, row), gone)
    except (KeyError, UnsafeTar):
        if row.stage == "ingest":
            raise
        return None
    samples = sum(1 for _ in read_tar(tar))
    return store_shard(
        store, row.stage, row.shard.replace(name, new_name, 1), row.fingerprint, tar, samples, row.source
    )


def _by_shard(rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    """Shard → its rows in every stage; "name-2" is a part of shard "name"."""
    found: dict[str, list[_Row]] = {}
    for row in rows:
        found.setdefault(row.shard.partition("-")[0], []).append(row)
    return found


def _by_name(rows: Iterable[PhotoRow]) -> list[PhotoRow]:
    """One row per photo and name: a shard that was replaced has the others of its photos twice."""
    return list({(row.source, row.origin, row.key): row for row in rows}.values())
