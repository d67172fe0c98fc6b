"""The people on whom releases are evaluated, and their photos as ingestion would cut them.

{evaluation}/people.json    whom its pictures show, and the keys of the photos that they were drawn from
"""

import hashlib
import io
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from PIL import Image

from flows.run import Run
from infra.errors import UserError, UserNotice
from infra.settings import Settings
from preprocessing.forgetting import forgotten_keys, forgotten_people
from preprocessing.photos import PhotoRefused, decode, read_bytes, square
from preprocessing.shards import encode_json
from preprocessing.sources import Record

PEOPLE = "people.json"
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
    """The evaluation's subjects: [{"name", "word", "photos": [PNG, …], "keys": [SHA-256, …], "original": PNG}].

    Those that the settings name in their order, else men and women in turn. The first photo is the reference; `keys`
    are of the photos' files; `original` is the same before it was cut, as the source has it.
    """
    settings = run.settings
    by_identity = records_by_person(run)
    forgotten = forgotten_keys(run.catalog)
    people: list[dict[str, Any]] = []
    for name, word in _wanted(run, by_identity):
        if len(people) == settings.evaluate.subjects:
            break
        records = by_identity[name][:_PHOTOS_EACH]
        found = [(photo, record) for record in records if (photo := evaluation_photo(record, settings, forgotten))]
        if found:
            original = _png(_decoded(found[0][1], settings))
            keys = [hashlib.sha256(read_bytes(record.path)).hexdigest() for _, record in found]
            photos = [photo for photo, _ in found]
            people.append({"name": name, "word": word, "photos": photos, "keys": keys, "original": original})
    if not people:
        raise UserError(f"{run.evaluation_spec()} names nobody to evaluate on: it needs identities and attributes.")
    return people


def note_people(run: Run, people: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Keep in an evaluation whom it shows: before the first picture is there."""
    shown = [{"name": one["name"], "photos": one["keys"]} for one in people]
    run.store.put(f"{folder}/{PEOPLE}", encode_json({"source": evaluation_namespace(run), "people": shown}))


def _wanted(run: Run, by_identity: dict[str, list[Record]]) -> list[tuple[str, str]]:
    """(name, word) of everybody who could be evaluated on, in the order in which they are taken.

    Whom the settings name and who asked to be forgotten is left out, with a notice. UserError where the source lacks
    somebody whom they name.
    """
    named = run.settings.evaluate.people
    forgotten, namespace = forgotten_people(run.catalog), evaluation_namespace(run)
    gone = [one.identity for one in named if f"{namespace}:{one.identity}" in forgotten]
    if gone:
        names = ", ".join(gone)
        warnings.warn(f"Of evaluate.people, {names} asked to be forgotten: evaluated without them.", UserNotice, 2)
    if missing := [one.identity for one in named if one.identity not in by_identity and one.identity not in gone]:
        raise UserError(
            f"{run.evaluation_spec()} has no photo with a word of {missing[0]} ({len(missing)} of the people that "
            "evaluate.people names are missing): name others, or [] for any."
        )
    if named:
        return [(one.identity, one.word) for one in named if one.identity in by_identity]
    words: dict[str, list[str]] = {}
    for name, records in by_identity.items():
        words.setdefault(str(records[0].word), []).append(name)
    turns = [name for place in range(len(by_identity)) for group in words.values() for name in group[place : place + 1]]
    return [(name, str(by_identity[name][0].word)) for name in turns]


def evaluation_photo(record: Record, settings: Settings, forgotten: Collection[str]) -> bytes | None:
    """The record's photo as a square PNG, as ingestion would cut it; None if it is unusable or its key `forgotten`.

    It is compared, not learned: half of what CLIP sees of a subject is enough. CelebA's aligned photos are 178 wide.
    """
    try:
        if hashlib.sha256(read_bytes(record.path)).hexdigest() in forgotten:
            return None
        photo = _decoded(record, settings)
    except PhotoRefused:
        return None
    return _png(square(photo, record.faces or (), settings.ingest.pixels)[0])


def _decoded(record: Record, settings: Settings) -> Image.Image:
    return decode(read_bytes(record.path), settings.shard.reference_pixels // 2, settings.ingest.max_pixels)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
