"""One shard in, one shard out: the bodies of caption, segment and shard; `columns.py` has what is costly of the last.

Plain functions of bytes, so that a repeat after a crash gives the same bytes and any scheduler can run them. One photo
that a model chokes on is refused with a reason and its shard goes on. If *every* photo fails, the model is at fault,
and its error is raised.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from infra.settings import BindingSettings, CaptionSettings, FilterSettings, SegmentSettings, ShardSettings
from preprocessing.batching import BatchModel, Steps, one_bad_apple
from preprocessing.binding import Subject
from preprocessing.captioning import one_line
from preprocessing.catalog import REFUSED, PhotoRow
from preprocessing.faces import Detector, missing_faces
from preprocessing.photos import Reason
from preprocessing.precompute import Precomputer
from preprocessing.prepared import MASK_SOURCE, prepared_part
from preprocessing.segmentation import People, Person, people_from_faces
from preprocessing.shards import (
    KeyedParts,
    Sample,
    decode_instances,
    decode_picture,
    encode_instances,
    encode_json,
    open_picture,
    read_tar,
    split_samples,
    write_tar,
)
from preprocessing.subjects import Found, faces_of, find_subjects

_Output = TypeVar("_Output")
_Parts = dict[str, bytes]  # what is written of a photo, by suffix
_Seen = tuple[Image.Image, list[dict[str, Any]]]  # a photo, and the faces that its source knows

# Every binding counts and nobody is filtered out.
ANY_BINDING = BindingSettings(margin=0.0)
NO_FILTERS = FilterSettings(
    find_faces=False,
    need_face=False,
    min_face=0.0,
    min_face_on_mask=0.0,
    min_sharpness=0.0,
    max_cut=1.0,
    max_people=0,
)


def caption_shard(
    tar: bytes, captioner: BatchModel[Image.Image, str], settings: CaptionSettings, shard: str = ""
) -> tuple[bytes, list[PhotoRow]]:
    """Ingested shard -> `{key}.json` with the caption for every photo, and a row for every photo refused."""
    samples = list(read_tar(tar))
    asked = _without_prepared(samples)
    answers = one_bad_apple(_captions(captioner), asked, settings.batch_size, picture_of) if asked else []
    results = _with_prepared(samples, answers, lambda _, part: str(part["caption"]))
    written, rows = [], []
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            rows.append(_refused("caption", shard, sample, Reason.MODEL_FAILED, _say(result)))
        elif not result:
            rows.append(_refused("caption", shard, sample, Reason.NO_CAPTION, Reason.NO_CAPTION.sentence))
        else:
            written.append((sample.key, {"json": encode_json({"caption": result})}))
    return write_tar(written), rows


def segment_shard(
    tar: bytes,
    segmenter: BatchModel[Image.Image, People],
    settings: SegmentSettings,
    shard: str = "",
    detector: Detector | None = None,
) -> tuple[bytes, list[PhotoRow]]:
    """Ingested shard -> `{key}.instances.png` and `{key}.json` (people, mask_source), and a row per refused photo.

    detector: looks for the faces of people whom the source's faces miss; what it finds goes into the json as `faces`.
    """
    samples = list(read_tar(tar))
    asked = _without_prepared(samples)
    answers = one_bad_apple(_people(segmenter, detector, settings), asked, settings.batch_size, _seen) if asked else []

    def given(sample: Sample, part: Mapping[str, Any]) -> _Parts | None:
        return _people_parts(_prepared_people(sample, part), _known_faces(sample), [], settings)

    written, rows = [], []
    for sample, result in zip(samples, _with_prepared(samples, answers, given), strict=True):
        if isinstance(result, Exception):
            rows.append(_refused("segment", shard, sample, Reason.MODEL_FAILED, _say(result)))
        elif result is None:
            rows.append(_refused("segment", shard, sample, Reason.NO_PERSON, Reason.NO_PERSON.sentence))
        else:
            written.append((sample.key, result))
    return write_tar(written), rows


def bind_shard(
    ingest: bytes,
    captions: bytes,
    segments: bytes,
    precomputer: Precomputer,
    binding: BindingSettings = ANY_BINDING,
    filters: FilterSettings = NO_FILTERS,
) -> bytes:
    """Join caption and people of the same photos: `{key}.json` (caption, mask_source, subjects) and the subjects' map.

    A photo that caption or segment refused is passed over: it has its row already. Subjects are numbered anew, 1 to S
    in the order of their words; people whom no word names, and people whom a filter takes, become background. A photo
    that comes to nothing here has a json that says why ({"refused", "detail"}), and `build_shard` makes a row of it.
    """
    captioned = {sample.key: sample for sample in read_tar(captions)}
    segmented = {sample.key: sample for sample in read_tar(segments)}
    samples = [sample for sample in read_tar(ingest) if sample.key in captioned and sample.key in segmented]

    def bound(batch: list[Sample]) -> list[_Bound]:
        return [_bind(s, captioned[s.key], segmented[s.key], precomputer, binding, filters) for s in batch]

    steps: Steps[Sample, _Bound] = Steps(bound)
    results = one_bad_apple(steps, samples, 1, lambda sample: sample)
    written: list[KeyedParts] = []
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            written.append((sample.key, failed(result)))
        elif result.found.reason is not None:
            why = {"refused": result.found.reason.value, "detail": result.found.detail}
            written.append((sample.key, {"json": encode_json(why)}))
        else:
            parts = {"json": encode_json(result.record()), "instances.png": encode_instances(result.instances)}
            written.append((sample.key, parts))
    return write_tar(written)


def build_shard(
    ingest: bytes, bound: bytes, columns: Mapping[str, bytes], settings: ShardSettings, shard: str = ""
) -> tuple[list[list[KeyedParts]], list[PhotoRow]]:
    """Join what is there of the same photos into training shards: no model, no picture is decoded.

    bound: of `bind_shard`. columns: name -> shard of arrays, of `columns.COLUMNS`. The samples of one shard come out,
    of an empty one where nothing is left, or of several where it would exceed `max_photos` or `max_bytes`.
    """
    photos = {sample.key: sample for sample in read_tar(ingest)}
    arrays = {name: {sample.key: sample for sample in read_tar(tar)} for name, tar in columns.items()}
    rows: list[PhotoRow] = []
    written: list[KeyedParts] = []
    for sample in read_tar(bound):
        photo = photos[sample.key]
        found = {name: column[sample.key] for name, column in arrays.items() if sample.key in column}
        refusal = _refusal([sample, *found.values()])
        if refusal is not None:
            rows.append(_refused("shard", shard, photo, *refusal))
            continue
        about = {**photo.json(), **sample.json()}
        parts = {"jpg": photo.parts["jpg"], **sample.parts, "json": encode_json(about)}
        for name in arrays:
            parts |= found[name].parts
        written.append((sample.key, parts))
    return split_samples(written, settings.max_photos, settings.max_bytes), rows


def _refusal(pieces: Iterable[Sample]) -> tuple[Reason, str] | None:
    """Why a photo does not go into a training shard, from what its columns say; None: it goes in.

    The one place where that is decided for photos whose caption and people are there.
    """
    for piece in pieces:
        if "json" in piece.parts and (about := piece.json()).get("refused"):
            return Reason(about["refused"]), str(about["detail"])
    return None


def left_out_counts(built: Iterable[Iterable[KeyedParts]]) -> dict[str, int]:
    """How many people of the built shards' photos each filter took; those of refused photos are not in it."""
    samples = (Sample(key, dict(parts)) for shard in built for key, parts in shard)
    return Counter(one["reason"] for sample in samples for one in sample.json().get("left_out", []))


class _Bound:
    """A sample with its words bound: who is named by which word."""

    def __init__(self, people: People, found: Found) -> None:
        self.people, self.found, self.subjects = people, found, found.subjects
        self.instances = np.zeros_like(people.instances)
        for number, (subject, _) in enumerate(self.subjects, start=1):
            self.instances[people.instances == subject.instance] = number

    def record(self) -> dict[str, Any]:
        """What a training sample's json says beyond its photo's."""
        subjects = [
            {**replace(subject, instance=number).record(), "token": token}
            for number, (subject, token) in enumerate(self.subjects, start=1)
        ]
        return {**self.found.record(), "mask_source": self.people.mask_source, "subjects": subjects}


def _bind(
    sample: Sample,
    captioned: Sample,
    segmented: Sample,
    precomputer: Precomputer,
    binding: BindingSettings,
    filters: FilterSettings,
) -> _Bound:
    about = segmented.json()
    instances = decode_instances(segmented.parts["instances.png"])
    people = People(
        instances, tuple(Person.from_record(record) for record in about["people"]), str(about["mask_source"])
    )
    faces = [*(sample.json().get("faces") or []), *about.get("faces", [])]
    caption, pixels = str(captioned.json()["caption"]), precomputer.settings.reference_pixels
    part = prepared_part(sample)
    given = None if part is None else prepared_subjects(part, people, faces_of(people, faces))
    # Whom a single word names is clear without looking.
    photo = open_picture(sample.parts["jpg"])
    found = find_subjects(photo, caption, people, faces, precomputer, pixels, binding, filters, given)
    return _Bound(people, found)


def picture_of(sample: Sample) -> Image.Image:
    """The sample's photo, RGB."""
    return decode_picture(sample.parts["jpg"])


def _known_faces(sample: Sample) -> list[dict[str, Any]]:
    """Those that its source knows."""
    return sample.json().get("faces") or []


def _seen(sample: Sample) -> _Seen:
    """The photo, and the faces that its source knows."""
    return picture_of(sample), _known_faces(sample)


def _captions(captioner: BatchModel[Image.Image, str]) -> Steps[Image.Image, str]:
    """Whatever the captioner writes, on one line."""
    steps = captioner.steps

    def read(photos: list[Image.Image], made: Any) -> list[str]:
        return [one_line(caption) for caption in steps.read(photos, made)]

    return Steps(steps.run, steps.collate, read)


def _people(
    segmenter: BatchModel[Image.Image, People], detector: Detector | None, settings: SegmentSettings
) -> Steps[_Seen, _Parts | None]:
    """What is written for each photo, made while the model is at the next ones; ValueError for maps of another size."""
    steps = segmenter.steps

    def collate(photos: list[_Seen]) -> Any:
        return steps.collate([picture for picture, _ in photos])

    def read(photos: list[_Seen], made: Any) -> list[_Parts | None]:
        written = []
        segmented = steps.read([picture for picture, _ in photos], made)
        for (picture, faces), people in zip(photos, segmented, strict=True):
            if people.instances.shape != (picture.height, picture.width):
                height, width = people.instances.shape
                raise ValueError(f"a mask of {width} x {height} for a picture of {picture.width} x {picture.height}")
            more: list[dict[str, Any]] = []
            if detector is not None:
                faceless = len(people.people) - len(faces_of(people, faces))
                more = missing_faces(picture, faces, faceless, detector)
            written.append(_people_parts(people, faces, more, settings))
        return written

    return Steps(steps.run, collate, read)


def _people_parts(
    people: People, known: list[dict[str, Any]], found: list[dict[str, Any]], settings: SegmentSettings
) -> _Parts | None:
    """A segmented sample; None where there is nobody. Faces: those that the source knows, those found beside them."""
    faces = [*known, *found]
    if not people.people and faces and settings.face_fallback:
        people = people_from_faces(faces, people.instances.shape)
    if not people.people:
        return None
    about: dict[str, Any] = {"mask_source": people.mask_source}
    about |= {"people": [person.record() for person in people.people]} | ({"faces": found} if found else {})
    return {"instances.png": encode_instances(people.instances), "json": encode_json(about)}


def _without_prepared(samples: Iterable[Sample]) -> list[Sample]:
    """Those that a model has to look at; the others came with what it would say."""
    return [sample for sample in samples if prepared_part(sample) is None]


def _with_prepared(
    samples: Iterable[Sample],
    results: Iterable[_Output | Exception],
    given: Callable[[Sample, Mapping[str, Any]], _Output],
) -> list[_Output | Exception]:
    """One result per sample: of `_without_prepared` the model's, in their order, of the others the source's."""
    answers = iter(results)
    parts = ((sample, prepared_part(sample)) for sample in samples)
    return [next(answers) if part is None else given(sample, part) for sample, part in parts]


def _prepared_people(sample: Sample, part: Mapping[str, Any]) -> People:
    people = tuple(Person.from_record(record) for record in part["people"])
    return People(decode_instances(sample.parts["instances.png"]), people, MASK_SOURCE)


def prepared_subjects(part: Mapping[str, Any], people: People, faces: Mapping[int, Mapping[str, Any]]) -> list[Subject]:
    """The source's own binding of words to people, sorted by place in the caption."""
    boxes = {person.instance: person.box for person in people.people}
    subjects = []
    for one in part["binding"]:
        instance = one["instance"]
        face = faces.get(instance)
        subjects.append(Subject(one["word"], one["start"], one["end"], instance, boxes[instance], face, 1.0))
    return subjects


def failed(error: Exception) -> dict[str, bytes]:
    """A column's entry for a photo on which its model failed."""
    return {"json": encode_json({"refused": Reason.MODEL_FAILED.value, "detail": _say(error)})}


def _refused(stage: str, shard: str, sample: Sample, reason: Reason, detail: str) -> PhotoRow:
    about = sample.json()
    source, origin = str(about.get("source", "")), str(about.get("origin", ""))
    return PhotoRow(stage, shard, sample.key, source, origin, REFUSED, reason.value, detail)


def _say(error: Exception) -> str:
    # One line of bounded length that can be encoded: it goes into a table that people read.
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return text.encode("utf-8", "backslashreplace").decode()
