"""One shard in, one shard out: the bodies of the caption, segment and shard stages.

Plain functions of bytes, so that a repeat after a crash gives the same bytes and any scheduler can run them. One photo
that a model chokes on is refused with a reason and its shard goes on. If *every* photo fails, the model is at fault,
and its error is raised.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from pydantic import BaseModel

from infra.errors import UserError
from infra.settings import BindingSettings, CaptionSettings, FilterSettings, SegmentSettings, ShardSettings
from preprocessing.captioning import Captioner, one_line
from preprocessing.catalog import REFUSED, PhotoRow
from preprocessing.faces import Detector, missing_faces
from preprocessing.photos import Reason
from preprocessing.precompute import Precomputer, subject_variants
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
from preprocessing.subjects import Found, faces_of, find_subjects

_Input = TypeVar("_Input")
_Output = TypeVar("_Output")

# Raise a stage's number when its code changes what it writes: its shards are then made anew.
FORMATS = {"ingest": 1, "caption": 1, "segment": 1, "shard": 2}
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
    results = _one_bad_apple(
        lambda batch: [one_line(caption) for caption in captioner.caption(_pictures(batch))],
        samples,
        settings.batch_size,
    )
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
    tar: bytes, segmenter: Segmenter, settings: SegmentSettings, shard: str = "", detector: Detector | None = None
) -> tuple[bytes, list[PhotoRow]]:
    """Ingested shard -> `{key}.instances.png` and `{key}.json` (people, mask_source), and a row per refused photo.

    detector: looks for the faces of people whom the source's faces miss; what it finds goes into the json as `faces`.
    """
    samples = list(read_tar(tar))
    results = _one_bad_apple(lambda batch: _people(batch, segmenter, detector), samples, settings.batch_size)
    written, rows = [], []
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            rows.append(_refused("segment", shard, sample, Reason.MODEL_FAILED, _say(result)))
            continue
        people, found = result
        faces = [*(sample.json().get("faces") or []), *found]
        if not people.people and faces and settings.face_fallback:
            people = people_from_faces(faces, people.instances.shape)
        if not people.people:
            rows.append(_refused("segment", shard, sample, Reason.NO_PERSON, Reason.NO_PERSON.sentence))
            continue
        about: dict[str, Any] = {"mask_source": people.mask_source}
        about |= {"people": [person.record() for person in people.people]} | ({"faces": found} if found else {})
        parts = {"instances.png": encode_instances(people.instances), "json": encode_json(about)}
        written.append((sample.key, parts))
    return write_tar(written), rows


def build_shard(
    ingest: bytes,
    captions: bytes,
    segments: bytes,
    precomputer: Precomputer,
    settings: ShardSettings,
    shard: str = "",
    binding: BindingSettings = ANY_BINDING,
    filters: FilterSettings = NO_FILTERS,
) -> tuple[bytes, list[PhotoRow]]:
    """Join the three shards of the same photos: bind words to people, precompute, write training samples.

    A photo that caption or segment refused is passed over: it has its row already. Subjects are numbered anew, 1 to S
    in the order of their words; people whom no word names, and people whom a filter takes, become background.
    """
    captioned = {sample.key: sample for sample in read_tar(captions)}
    segmented = {sample.key: sample for sample in read_tar(segments)}
    samples = [sample for sample in read_tar(ingest) if sample.key in captioned and sample.key in segmented]
    rows: list[PhotoRow] = []
    bound: list[tuple[Sample, _Bound]] = []
    results = _one_bad_apple(
        lambda batch: [_bind(s, captioned[s.key], segmented[s.key], precomputer, binding, filters) for s in batch],
        samples,
        1,
    )
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            rows.append(_refused("shard", shard, sample, Reason.MODEL_FAILED, _say(result)))
        elif result.found.reason is not None:
            rows.append(_refused("shard", shard, sample, result.found.reason, result.found.detail))
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


def left_out_counts(tar: bytes) -> dict[str, int]:
    """How many people of a built shard's photos each filter took; those of refused photos are not in it."""
    return Counter(one["reason"] for sample in read_tar(tar) for one in sample.json().get("left_out", []))


class _Bound:
    """A sample with its words bound: what precomputing needs."""

    def __init__(self, picture: Image.Image, people: People, found: Found) -> None:
        self.picture, self.people, self.found = picture, people, found
        self.caption, self.subjects = found.caption, found.subjects
        self.instances = np.zeros_like(people.instances)
        for number, (subject, _) in enumerate(self.subjects, start=1):
            self.instances[people.instances == subject.instance] = number


def _bind(
    sample: Sample,
    captioned: Sample,
    segmented: Sample,
    precomputer: Precomputer,
    binding: BindingSettings,
    filters: FilterSettings,
) -> _Bound:
    picture = decode_picture(sample.parts["jpg"])
    about = segmented.json()
    instances = decode_instances(segmented.parts["instances.png"])
    people = People(
        instances, tuple(Person.from_record(record) for record in about["people"]), str(about["mask_source"])
    )
    faces = [*(sample.json().get("faces") or []), *about.get("faces", [])]
    caption, pixels = str(captioned.json()["caption"]), precomputer.settings.reference_pixels
    found = find_subjects(picture, caption, people, faces, precomputer, pixels, binding, filters)
    return _Bound(picture, people, found)


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
            **bound.found.record(),
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


def _people(
    samples: Sequence[Sample], segmenter: Segmenter, detector: Detector | None
) -> list[tuple[People, list[dict[str, Any]]]]:
    """The people in each photo and the faces that its source did not know; ValueError for maps of another size."""
    pictures = _pictures(samples)
    segmented = _as_many(segmenter.segment(pictures), samples)
    for picture, people in zip(pictures, segmented, strict=True):
        if people.instances.shape != (picture.height, picture.width):
            height, width = people.instances.shape
            raise ValueError(f"a mask of {width} x {height} for a picture of {picture.width} x {picture.height}")
    known = [sample.json().get("faces") or [] for sample in samples]
    if detector is None:
        return [(people, []) for people in segmented]
    return [
        (people, missing_faces(picture, faces, len(people.people) - len(faces_of(people, faces)), detector))
        for picture, people, faces in zip(pictures, segmented, known, strict=True)
    ]


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
            results += _as_many(work(batch), batch)
        except UserError:  # about the installation, not about a photo
            raise
        except Exception as error:
            if len(batch) == 1:
                results.append(error)
                continue
            for item in batch:
                try:
                    results += _as_many(work([item]), [item])
                except UserError:
                    raise
                except Exception as alone:
                    results.append(alone)
    if len(results) > 1 and all(isinstance(result, Exception) for result in results):
        raise next(result for result in results if isinstance(result, Exception))
    return results


def _as_many(made: Sequence[_Output], items: Sequence[_Input]) -> Sequence[_Output]:
    if len(made) != len(items):
        raise ValueError(f"{len(made)} results for {len(items)} photos")
    return made


def _refused(stage: str, shard: str, sample: Sample, reason: Reason, detail: str) -> PhotoRow:
    about = sample.json()
    source, origin = str(about.get("source", "")), str(about.get("origin", ""))
    return PhotoRow(stage, shard, sample.key, source, origin, REFUSED, reason.value, detail)


def _say(error: Exception) -> str:
    # One line of bounded length that can be encoded: it goes into a table that people read.
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return text.encode("utf-8", "backslashreplace").decode()
