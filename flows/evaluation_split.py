"""People of the evaluation are in no training photo: checked before a training and before its evaluation.

Three ways in which they could be: the source says that it is the same person, the same bytes are there, or a photo
looks like one of theirs (where near_duplicates.search is on). What was found clean is written beside the training.
"""

import hashlib
from collections.abc import Iterable, Mapping

from flows import artifacts
from flows.evaluation_people import evaluation_namespace, evaluation_photo, read_people, records_by_person
from flows.near_duplicates import signatures_of
from flows.run import Run, digest
from flows.signature_workers import PictureSigner
from infra.errors import UserError
from infra.ray_session import map_shards
from preprocessing.catalog import PhotoRow, load_shard
from preprocessing.forgetting import forgotten_keys
from preprocessing.near_duplicates import Limits, matches
from preprocessing.photos import PhotoRefused, read_bytes
from preprocessing.shards import encode_json, read_tar
from preprocessing.signatures import Signatures, SignedPhoto
from preprocessing.sources import Record
from preprocessing.training_photos import training_photos

_NAMED = 3  # photos in the sentence; the table has all


def check_split(run: Run, run_id: str, version: int) -> None:
    """Raise UserError where a photo of a training shows somebody of the evaluation; version: of its catalog."""
    people, namespace = people_and_photos(run), evaluation_namespace(run)
    shown = [[name, *(_sha256(png) for _, png in photos)] for name, photos in people.items()]
    key = f"runs/{run_id}/split-{digest(namespace, shown, run.fingerprints)}.json"
    if run.store.exists(key):
        return
    training = training_photos(run.catalog, run.fingerprints, version)
    found = [
        *_same_person(run, version, training, people.keys(), namespace),
        *_same_bytes(training, people),
        *_same_picture(run, version, training, people, namespace),
    ]
    if not found:
        photos = sum(len(photos) for photos in people.values())
        run.store.put(key, encode_json({"people": len(people), "photos": photos, "trained_on": len(training)}))
        return
    rows = list({row["photo"]: row for row in found}.values())
    artifacts.table("evaluation-split", rows, "Training photos of people who are evaluated on")
    names = "; ".join(f"{row['photo']} ({row['why']})" for row in rows[:_NAMED])
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    raise UserError(
        f"People to evaluate on are in {len(rows)} training photos: {names}{more}: moa forget takes them out of the "
        "training, ingest.splits and evaluate.split keep apart what the source keeps apart."
    )


def people_and_photos(run: Run) -> dict[str, list[tuple[Record, bytes]]]:
    """Identity → all photos of each person who is evaluated on, and each as a PNG as ingestion would cut it."""
    records, forgotten = records_by_person(run), forgotten_keys(run.catalog)
    people: dict[str, list[tuple[Record, bytes]]] = {}
    for one in read_people(run):
        pictures = [(record, evaluation_photo(record, run.settings, forgotten)) for record in records[one["name"]]]
        people[one["name"]] = [(record, png) for record, png in pictures if png is not None]
    return people


def _same_person(
    run: Run, version: int, training: Mapping[str, PhotoRow], names: Iterable[str], namespace: str
) -> list[dict[str, str]]:
    wanted = set(names)
    if not any(row.source == namespace for row in training.values()):
        return []  # no identity of another source is theirs
    shards = [row for row in run.catalog.shards("ingest", version) if row.source == namespace]
    found = []
    # The catalog does not know identities; the shards do.
    for shard in artifacts.tracked(shards, len(shards), "evaluation split: shards"):
        for sample in read_tar(load_shard(run.store, shard)):
            about = sample.json()
            identity = str(about.get("identity") or "")
            if sample.key in training and about.get("source") == namespace and identity in wanted:
                found.append({"photo": f"{namespace}:{about['origin']}", "why": f"{namespace}'s person {identity}"})
    return found


def _same_bytes(
    training: Mapping[str, PhotoRow], people: Mapping[str, list[tuple[Record, bytes]]]
) -> list[dict[str, str]]:
    found = []
    for name, photos in people.items():
        for record, _ in photos:
            try:
                row = training.get(_sha256(read_bytes(record.path)))
            except PhotoRefused:
                continue
            if row is not None:
                found.append({"photo": f"{row.source}:{row.origin}", "why": f"the bytes of {name}'s {record.origin}"})
    return found


def _same_picture(
    run: Run,
    version: int,
    training: Mapping[str, PhotoRow],
    people: Mapping[str, list[tuple[Record, bytes]]],
    namespace: str,
) -> list[dict[str, str]]:
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
    shards = run.shards("signatures", version)
    for shard in artifacts.tracked(shards, len(shards), "evaluation split: signatures"):
        among = signatures_of(run, [shard])
        for match in sorted(matches(asked, among, limits)):
            photo, theirs = among.photos[match.found], asked.photos[match.asked]
            if photo.key in training:
                found.append({"photo": photo.name, "why": f"looks like {theirs.identity}'s {theirs.origin}"})
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
