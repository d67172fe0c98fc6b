"""One shard in, one shard out: the bodies of the caption, segment and shard stages.

Plain functions of bytes, so that a repeat after a crash gives the same bytes and any scheduler can run them. One photo
that a model chokes on is refused with a reason and its shard goes on. If *every* photo fails, the model is at fault,
and its error is raised.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel

from infra.errors import UserError
from infra.settings import CaptionSettings, SegmentSettings, ShardSettings
from preprocessing.binding import Subject, bind, person_words
from preprocessing.captioning import Captioner
from preprocessing.catalog import REFUSED, PhotoRow
from preprocessing.photos import Reason
from preprocessing.precompute import Precomputer, subject_crop, subject_variants
from preprocessing.prepared import MASK_SOURCE, prepared_part
from preprocessing.segmentation import People, Person, Segmenter, people_from_faces
from preprocessing.shards import (
    Sample,
    decode_instances,
    decode_picture,
    encode_instances,
    encode_json,
    encode_npy,
    read_tar,
    write_tar,
)

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")

# Raise a stage's number when its code changes what it writes: its shards are then made anew.
FORMATS = {"ingest": 1, "caption": 1, "segment": 1, "shard": 1}
# How many run at once changes no byte of the result.
_WITHOUT_EFFECT = {"workers"}


def stage_fingerprint(stage: str, settings: BaseModel, *inputs: str) -> str:
    """16 hex digits that name how a stage makes its shards: from its settings, the code's format number and `inputs`,
    the fingerprints of its models and of the stages that it reads."""
    values = {name: value for name, value in settings.model_dump(mode="json").items() if name not in _WITHOUT_EFFECT}
    text = json.dumps([stage, FORMATS[stage], values, list(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def caption_shard(
    tar: bytes, captioner: Captioner, settings: CaptionSettings, shard: str = ""
) -> tuple[bytes, list[PhotoRow]]:
    """Ingested shard -> `{key}.json` with the caption for every photo, and a row for every photo refused."""
    samples = list(read_tar(tar))
    asked = _without_prepared(samples)
    answers = _one_bad_apple(lambda batch: captioner.caption(_pictures(batch)), asked, settings.batch_size)
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
    tar: bytes, segmenter: Segmenter, settings: SegmentSettings, shard: str = ""
) -> tuple[bytes, list[PhotoRow]]:
    """Ingested shard -> `{key}.instances.png` and `{key}.json` (people, mask_source), and a row per refused photo."""
    samples = list(read_tar(tar))
    asked = _without_prepared(samples)
    answers = _one_bad_apple(lambda batch: segmenter.segment(_pictures(batch)), asked, settings.batch_size)
    results = _with_prepared(samples, answers, _prepared_people)
    written, rows = [], []
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            rows.append(_refused("segment", shard, sample, Reason.MODEL_FAILED, _say(result)))
            continue
        faces = sample.json().get("faces") or []
        if not result.people and faces and settings.face_fallback:
            result = people_from_faces(faces, result.instances.shape)
        if not result.people:
            rows.append(_refused("segment", shard, sample, Reason.NO_PERSON, Reason.NO_PERSON.sentence))
            continue
        about = {"mask_source": result.mask_source, "people": [person.record() for person in result.people]}
        parts = {"instances.png": encode_instances(result.instances), "json": encode_json(about)}
        written.append((sample.key, parts))
    return write_tar(written), rows


def build_shard(
    ingest: bytes, captions: bytes, segments: bytes, precomputer: Precomputer, settings: ShardSettings, shard: str = ""
) -> tuple[bytes, list[PhotoRow]]:
    """Join the three shards of the same photos: bind words to people, precompute, write training samples.

    A photo that caption or segment refused is passed over: it has its row already. Subjects are numbered anew, 1 to S
    in the order of their words; people whom no word names become background.
    """
    captioned = {sample.key: sample for sample in read_tar(captions)}
    segmented = {sample.key: sample for sample in read_tar(segments)}
    samples = [sample for sample in read_tar(ingest) if sample.key in captioned and sample.key in segmented]
    rows: list[PhotoRow] = []
    bound: list[tuple[Sample, _Bound]] = []
    results = _one_bad_apple(
        lambda batch: [_bind(s, captioned[s.key], segmented[s.key], precomputer) for s in batch], samples, 1
    )
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            rows.append(_refused("shard", shard, sample, Reason.MODEL_FAILED, _say(result)))
        elif not result.subjects:
            rows.append(_refused("shard", shard, sample, Reason.NO_PERSON_WORD, f"caption: {result.caption}"))
        else:
            bound.append((sample, result))
    written = []
    made = _one_bad_apple(lambda batch: _training_parts(batch, precomputer, settings), bound, settings.batch_size)
    for (sample, _), parts in zip(bound, made, strict=True):
        if isinstance(parts, Exception):
            rows.append(_refused("shard", shard, sample, Reason.MODEL_FAILED, _say(parts)))
        else:
            written.append((sample.key, parts))
    return write_tar(written), rows


class _Bound:
    """A sample with its words bound: what precomputing needs."""

    def __init__(self, picture: Image.Image, caption: str, people: People, subjects: list[tuple[Subject, int]]) -> None:
        self.picture, self.caption, self.people, self.subjects = picture, caption, people, subjects
        self.instances = np.zeros_like(people.instances)
        for number, (subject, _) in enumerate(subjects, start=1):
            self.instances[people.instances == subject.instance] = number


def _bind(sample: Sample, captioned: Sample, segmented: Sample, precomputer: Precomputer) -> _Bound:
    picture = decode_picture(sample.parts["jpg"])
    about = segmented.json()
    instances = decode_instances(segmented.parts["instances.png"])
    people = People(
        instances, tuple(Person.from_record(record) for record in about["people"]), str(about["mask_source"])
    )
    caption = str(captioned.json()["caption"])
    faces = faces_of(people, sample.json().get("faces") or [])
    part = prepared_part(sample)
    words = person_words(caption) if part is None else []
    scores = None
    if len({word.text.lower() for word in words}) > 1 and len(people.people) > 1:
        pixels = precomputer.settings.reference_pixels
        crops = [subject_crop(picture, None, person.box, pixels) for person in people.people]
        scores = precomputer.word_scores(crops, words)
    bound = bind(words, people.people, scores, faces) if part is None else prepared_subjects(part, people, faces)
    tokens = [(subject, precomputer.token(caption, subject)) for subject in bound]
    # A word beyond the prompt's last token cannot carry anybody.
    return _Bound(picture, caption, people, [(subject, token) for subject, token in tokens if token is not None])


def faces_of(people: People, faces: Iterable[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Instance number -> the largest face whose centre lies on that person's mask."""
    height, width = people.instances.shape
    found: dict[int, Mapping[str, Any]] = {}

    def area(face: Mapping[str, Any]) -> float:
        x1, y1, x2, y2 = face["box"]
        return float((x2 - x1) * (y2 - y1))

    for face in sorted(faces, key=area):
        x, y = (face["box"][0] + face["box"][2]) / 2, (face["box"][1] + face["box"][3]) / 2
        if 0 <= x < width and 0 <= y < height and (instance := int(people.instances[int(y), int(x)])):
            found[instance] = face
    return found


def _training_parts(
    batch: Sequence[tuple[Sample, _Bound]], precomputer: Precomputer, settings: ShardSettings
) -> list[dict[str, bytes]]:
    moments = precomputer.moments([bound.picture for _, bound in batch])
    text = precomputer.text([bound.caption for _, bound in batch])
    crops = [
        crop
        for sample, bound in batch
        for number, (subject, _) in enumerate(bound.subjects, start=1)
        for crop in subject_variants(
            bound.picture, bound.instances == number, subject.box, settings, f"{sample.key} {number}"
        )
    ]
    embeds = precomputer.image_embeds(crops).reshape(-1, settings.reference_variants, precomputer.embed_width)
    parts, first = [], 0
    for i, (sample, bound) in enumerate(batch):
        count = len(bound.subjects)
        subjects = [
            {**replace(subject, instance=number).record(), "token": token}
            for number, (subject, token) in enumerate(bound.subjects, start=1)
        ]
        about = {
            **sample.json(),
            "caption": bound.caption,
            "mask_source": bound.people.mask_source,
            "subjects": subjects,
        }
        parts.append(
            {
                "jpg": sample.parts["jpg"],
                "json": encode_json(about),
                "instances.png": encode_instances(bound.instances),
                "moments.npy": encode_npy(moments[i]),
                "text.npy": encode_npy(text[i]),
                "image_embeds.npy": encode_npy(embeds[first : first + count]),
            }
        )
        first += count
    return parts


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


def _pictures(samples: Iterable[Sample]) -> list[Image.Image]:
    return [decode_picture(sample.parts["jpg"]) for sample in samples]


def _one_bad_apple(
    work: Callable[[list[_Input]], list[_Output]], items: Sequence[_Input], batch_size: int
) -> list[_Output | Exception]:
    """`work` in batches; where a batch fails, its items one by one. The first error is raised if everything failed."""
    results: list[_Output | Exception] = []
    for start in range(0, len(items), batch_size):
        batch = list(items[start : start + batch_size])
        try:
            results += work(batch)
        except UserError:  # about the installation, not about a photo
            raise
        except Exception as error:
            if len(batch) == 1:
                results.append(error)
                continue
            for item in batch:
                try:
                    results += work([item])
                except Exception as alone:
                    results.append(alone)
    if len(results) > 1 and all(isinstance(result, Exception) for result in results):
        raise next(result for result in results if isinstance(result, Exception))
    return results


def _refused(stage: str, shard: str, sample: Sample, reason: Reason, detail: str) -> PhotoRow:
    about = sample.json()
    source, origin = str(about.get("source", "")), str(about.get("origin", ""))
    return PhotoRow(stage, shard, sample.key, source, origin, REFUSED, reason.value, detail)


def _say(error: Exception) -> str:
    # One line of bounded length: it goes into a table that people read.
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
