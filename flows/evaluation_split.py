"""People of the evaluation are in no training photo: checked before a training and before its evaluation.

Three ways in which they could be: the source says that it is the same person, the same bytes are there, or a photo
looks like one of theirs (where near_duplicates.search is on). That nothing was found is written beside the training.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from flows import artifacts
from flows.evaluation_people import evaluation_namespace, evaluation_photo, read_people, records_by_person
from flows.holdings import ancestors
from flows.near_duplicates import signatures_of
from flows.run import Run, digest
from flows.signature_workers import PictureSigner
from infra.errors import UserError
from infra.ray_session import map_shards
from preprocessing.catalog import ShardRow, load_shard
from preprocessing.near_duplicates import Limits, matches
from preprocessing.photos import PhotoRefused, read_bytes
from preprocessing.shards import encode_json, read_tar
from preprocessing.signatures import Signatures, SignedPhoto
from preprocessing.sources import Record
from preprocessing.training_photos import training_photos

_NAMED = 3  # photos in the sentence; the table has all


@dataclass(frozen=True)
class _Lookalike:
    """A photo that was taken in and shows somebody of the evaluation."""

    key: str
    photo: str
    why: str


def check_split(run: Run, plan: Mapping[str, Any]) -> None:
    """Raise UserError where a photo of a training shows somebody of the evaluation.

    plan: of the training. A release from which it starts, and those from which that one did, are looked into as well.
    """
    people, namespace = people_and_photos(run), evaluation_namespace(run)
    shown = [[name, *(_sha256(png) for _, png in photos)] for name, photos in people.items()]
    key = f"runs/{plan['run_id']}/split-{digest(namespace, shown, run.fingerprints)}.json"
    if run.store.exists(key):
        return
    trainings = [("", plan["catalog_version"], run.fingerprints)]
    for release in ancestors(run, plan["start"]):
        card = run.releases.card(release)
        trainings.append((f"release {release.number}", card["catalog_version"], card["stages"]))
    taken_in = _by_identity(run, [version for _, version, _ in trainings], people.keys(), namespace)
    taken_in += _by_signature(run, [version for _, version, _ in trainings], people, namespace)
    bytes_of = {one.key: one for one in _by_bytes(people)}
    for name, version, fingerprints in trainings:
        training = training_photos(run.catalog, fingerprints, version)
        found = {one.key: one for one in taken_in if one.key in training}
        for key_of_file, one in bytes_of.items():
            if row := training.get(key_of_file):
                found[key_of_file] = replace(one, photo=f"{row.source}:{row.origin}")
        if found:
            raise UserError(_sentence(name, [found[key] for key in sorted(found)]))
    photos = sum(len(photos) for photos in people.values())
    run.store.put(key, encode_json({"people": len(people), "photos": photos, "trainings": len(trainings)}))


def _sentence(release: str, found: list[_Lookalike]) -> str:
    rows = [{"photo": one.photo, "why": one.why} for one in found]
    artifacts.table("evaluation-split", rows, "Training photos of people who are evaluated on")
    names = "; ".join(f"{one.photo} ({one.why})" for one in found[:_NAMED])
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    if release:
        return (
            f"People to evaluate on were in {len(found)} photos of {release}, from which this training starts: "
            f"{names}{more}: train with --from-scratch, or evaluate on others (evaluate.source, evaluate.split)."
        )
    return (
        f"People to evaluate on are in {len(found)} training photos: {names}{more}: moa forget takes them out of both, "
        "ingest.splits and evaluate.split keep apart what the source keeps apart."
    )


def people_and_photos(run: Run) -> dict[str, list[tuple[Record, bytes]]]:
    """Identity → all photos of each person who is evaluated on, and each as a PNG as ingestion would cut it.

    Forgotten photos of theirs as well: a release may know them.
    """
    records = records_by_person(run)
    people: dict[str, list[tuple[Record, bytes]]] = {}
    for one in read_people(run):
        pictures = [(record, evaluation_photo(record, run.settings, ())) for record in records[one["name"]]]
        people[one["name"]] = [(record, png) for record, png in pictures if png is not None]
    return people


def _by_identity(run: Run, versions: Iterable[int], names: Iterable[str], namespace: str) -> list[_Lookalike]:
    """What the source itself says; no identity of another source is theirs."""
    wanted = set(names)
    shards = [row for row in _shards(run, "ingest", versions) if row.source == namespace]
    found = []
    # The catalog does not know identities; the shards do.
    for shard in _watched(shards, "evaluation split: identities"):
        for sample in read_tar(load_shard(run.store, shard)):
            about = sample.json()
            identity = str(about.get("identity") or "")
            if about.get("source") == namespace and identity in wanted:
                photo, why = f"{namespace}:{about['origin']}", f"{namespace}'s person {identity}"
                found.append(_Lookalike(sample.key, photo, why))
    return found


def _by_bytes(people: Mapping[str, list[tuple[Record, bytes]]]) -> Iterator[_Lookalike]:
    for name, photos in people.items():
        for record, _ in photos:
            with suppress(PhotoRefused):
                yield _Lookalike(_sha256(read_bytes(record.path)), "", f"the bytes of {name}'s {record.origin}")


def _by_signature(
    run: Run, versions: Iterable[int], people: Mapping[str, list[tuple[Record, bytes]]], namespace: str
) -> list[_Lookalike]:
    settings = run.settings
    if not settings.near_duplicates.search:
        return []
    every = [(name, record, png) for name, photos in people.items() for record, png in photos]
    photos = [SignedPhoto("", namespace, record.origin, name) for name, record, _ in every]
    item = {"photos": photos, "pictures": [png for *_, png in every]}
    arguments = (settings.models.clip, settings.signatures)
    asked: Signatures = next(map_shards(PictureSigner, [item], 1, arguments))["signatures"]
    limits = Limits(settings.near_duplicates.hash_distance, settings.near_duplicates.cosine)
    found = []
    shards = [row for row in _shards(run, "signatures", versions) if row.fingerprint == run.fingerprints["signatures"]]
    for shard in _watched(shards, "evaluation split: signatures"):
        among = signatures_of(run, [shard])
        for match in sorted(matches(asked, among, limits)):
            photo, theirs = among.photos[match.found], asked.photos[match.asked]
            found.append(_Lookalike(photo.key, photo.name, f"looks like {theirs.identity}'s {theirs.origin}"))
    return found


def _shards(run: Run, stage: str, versions: Iterable[int]) -> list[ShardRow]:
    """The stage's shards in any of these versions, as far as a purge has left them."""
    rows = {row.object_key: row for version in versions for row in run.catalog.shards(stage, version)}
    return [row for key, row in sorted(rows.items()) if run.store.exists(key)]


def _watched(shards: list[ShardRow], title: str) -> Iterable[ShardRow]:
    return artifacts.tracked(shards, len(shards), title) if shards else []


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
