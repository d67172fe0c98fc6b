"""The people on whom releases are evaluated, and their photos as ingestion would cut them."""

import hashlib
import io
from collections.abc import Collection
from typing import Any

from flows.run import Run
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.forgetting import forgotten_keys, forgotten_people
from preprocessing.photos import PhotoRefused, decode, read_bytes, square
from preprocessing.sources import Record

_PHOTOS_EACH = 3  # the reference, and two to compare it with


def evaluation_namespace(run: Run) -> str:
    """The name of the source within which the evaluation's identities mean the same; as ingestion names it."""
    spec = run.settings.evaluate.source
    return "paperfolk" if spec == "paperfolk" else run.open_source(run.evaluation_spec()).name


def records_by_person(run: Run) -> dict[str, list[Record]]:
    """Identity → their records, of everybody who could be evaluated on: whoever asked to be forgotten is left out."""
    split, forgotten = run.settings.evaluate.split, forgotten_people(run.catalog)
    namespace = evaluation_namespace(run)
    people: dict[str, list[Record]] = {}
    for record in run.open_source(run.evaluation_spec()).records():
        named = record.problem is None and record.identity and record.word and split in ("", record.split)
        if named and f"{namespace}:{record.identity}" not in forgotten:
            people.setdefault(str(record.identity), []).append(record)
    return people


def read_people(run: Run) -> list[dict[str, Any]]:
    """The evaluation's subjects: [{"name", "word", "photos": [PNG, …]}], men and women in turn.

    The first photo is the reference.
    """
    settings = run.settings
    by_identity = records_by_person(run)
    forgotten = forgotten_keys(run.catalog)
    words: dict[str, list[str]] = {}
    for name, records in by_identity.items():
        words.setdefault(str(records[0].word), []).append(name)
    turns = [name for place in range(len(by_identity)) for group in words.values() for name in group[place : place + 1]]
    people: list[dict[str, Any]] = []
    for name in turns:
        if len(people) == settings.evaluate.subjects:
            break
        found = (evaluation_photo(record, settings, forgotten) for record in by_identity[name][:_PHOTOS_EACH])
        photos = [photo for photo in found if photo]
        if photos:
            people.append({"name": name, "word": str(by_identity[name][0].word), "photos": photos})
    if not people:
        raise UserError(f"{run.evaluation_spec()} names nobody to evaluate on: it needs identities and attributes.")
    return people


def evaluation_photo(record: Record, settings: Settings, forgotten: Collection[str]) -> bytes | None:
    """The record's photo as a square PNG, as ingestion would cut it; None if it is unusable or its key `forgotten`.

    It is compared, not learned: half of what CLIP sees of a subject is enough. CelebA's aligned photos are 178 wide.
    """
    try:
        data = read_bytes(record.path)
        if hashlib.sha256(data).hexdigest() in forgotten:
            return None
        photo = decode(data, settings.shard.reference_pixels // 2, settings.ingest.max_pixels)
    except PhotoRefused:
        return None
    buffer = io.BytesIO()
    square(photo, record.faces or (), settings.ingest.pixels)[0].save(buffer, "PNG")
    return buffer.getvalue()
