"""One shard in, one shard out: the bodies of caption, segment and shard; `columns.py` has what is costly of the last.

Plain functions of bytes, so that a repeat after a crash gives the same bytes and any scheduler can run them. One photo
that a model chokes on is refused with a reason and its shard goes on. If *every* photo fails, the model is at fault,
and its error is raised.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from preprocessing.precompute import Precomputer, subject_crop
from preprocessing.segmentation import People, Person, Segmenter, people_from_faces
from preprocessing.shards import (
    KeyedParts,
    Sample,
    decode_instances,
    decode_picture,
    encode_instances,
    encode_json,
    read_tar,
    split_samples,
    write_tar,
)

_Input = TypeVar("_Input")
_Ready = TypeVar("_Ready")
_Output = TypeVar("_Output")

# Raise a stage's number when its code changes what it writes: its shards are then made anew. The four in the middle are
# the columns that `shard` joins, each kept by itself.
FORMATS = {
    "ingest": 1, "caption": 1, "segment": 1, "bind": 1, "moments": 1, "text": 1, "image_embeds": 1, "shard": 2,
}  # fmt: skip
# How many run at once changes no byte of the result.
_WITHOUT_EFFECT = {"workers"}


def stage_fingerprint(stage: str, settings: BaseModel, *inputs: str, only: Collection[str] | None = None) -> str:
    """16 hex digits that name how a stage makes its shards: from its settings, the code's format number and `inputs`,
    the fingerprints of its models and of the stages that it reads. `only`: the settings that it looks at, None = all.
    """
    values = {name: value for name, value in settings.model_dump(mode="json").items() if name not in _WITHOUT_EFFECT}
    if only is not None:
        values = {name: values[name] for name in only}
    text = json.dumps([stage, FORMATS[stage], values, list(inputs)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def caption_shard(
    tar: bytes, captioner: Captioner, settings: CaptionSettings, shard: str = ""
) -> tuple[bytes, list[PhotoRow]]:
    """Ingested shard -> `{key}.json` with the caption for every photo, and a row for every photo refused."""
    samples = list(read_tar(tar))
    results = one_bad_apple(captioner.caption, samples, settings.batch_size, picture_of)
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
    results = one_bad_apple(segmenter.segment, samples, settings.batch_size, picture_of)
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


def bind_shard(ingest: bytes, captions: bytes, segments: bytes, precomputer: Precomputer) -> bytes:
    """Join caption and people of the same photos: `{key}.json` (caption, mask_source, subjects) and the subjects' map.

    A photo that caption or segment refused is passed over: it has its row already. Subjects are numbered anew, 1 to S
    in the order of their words; people whom no word names become background. A photo that comes to nothing here has a
    json that says why ({"refused", "detail"}), and `build_shard` makes a row of it.
    """
    captioned = {sample.key: sample for sample in read_tar(captions)}
    segmented = {sample.key: sample for sample in read_tar(segments)}
    samples = [sample for sample in read_tar(ingest) if sample.key in captioned and sample.key in segmented]
    results = one_bad_apple(
        lambda batch: [_bind(s, captioned[s.key], segmented[s.key], precomputer) for s in batch],
        samples,
        1,
        lambda sample: sample,
    )
    written: list[tuple[str, dict[str, bytes]]] = []
    for sample, result in zip(samples, results, strict=True):
        if isinstance(result, Exception):
            written.append((sample.key, failed(result)))
        elif not result.subjects:
            why = {"refused": Reason.NO_PERSON_WORD.value, "detail": f"caption: {result.caption}"}
            written.append((sample.key, {"json": encode_json(why)}))
        else:
            parts = {"json": encode_json(result.record()), "instances.png": encode_instances(result.instances)}
            written.append((sample.key, parts))
    return write_tar(written)


def build_shard(
    ingest: bytes, bound: bytes, columns: Mapping[str, bytes], settings: ShardSettings, shard: str = ""
) -> tuple[list[list[KeyedParts]], list[PhotoRow]]:
    """Join what is there of the same photos into training shards: no model, no picture is decoded.

    bound: of `bind_shard`. columns: name -> shard of `{key}.{name}.npy`, of `columns.COLUMNS`. The samples of one shard
    come out, of an empty one where nothing is left, or of several where it would exceed `max_photos` or `max_bytes`.
    """
    photos = {sample.key: sample for sample in read_tar(ingest)}
    arrays = {name: {sample.key: sample for sample in read_tar(tar)} for name, tar in columns.items()}
    rows: list[PhotoRow] = []
    written: list[tuple[str, dict[str, bytes]]] = []
    for sample in read_tar(bound):
        photo = photos[sample.key]
        found = {name: column[sample.key] for name, column in arrays.items() if sample.key in column}
        refusal = _refusal([sample, *found.values()])
        if refusal is not None:
            rows.append(_refused("shard", shard, photo, *refusal))
            continue
        about = {**photo.json(), **sample.json()}
        parts = {"jpg": photo.parts["jpg"], **sample.parts, "json": encode_json(about)}
        written.append((sample.key, parts | {f"{name}.npy": found[name].parts[f"{name}.npy"] for name in arrays}))
    return split_samples(written, settings.max_photos, settings.max_bytes), rows


def _refusal(pieces: Iterable[Sample]) -> tuple[Reason, str] | None:
    """Why a photo does not go into a training shard, from what its columns say; None: it goes in.

    The one place where that is decided for photos whose caption and people are there.
    """
    for piece in pieces:
        if "json" in piece.parts and (about := piece.json()).get("refused"):
            return Reason(about["refused"]), str(about["detail"])
    return None


class _Bound:
    """A sample with its words bound: who is named by which word."""

    def __init__(self, caption: str, people: People, subjects: list[tuple[Subject, int]]) -> None:
        self.caption, self.people, self.subjects = caption, people, subjects
        self.instances = np.zeros_like(people.instances)
        for number, (subject, _) in enumerate(subjects, start=1):
            self.instances[people.instances == subject.instance] = number

    def record(self) -> dict[str, Any]:
        """What a training sample's json says beyond its photo's."""
        subjects = [
            {**replace(subject, instance=number).record(), "token": token}
            for number, (subject, token) in enumerate(self.subjects, start=1)
        ]
        return {"caption": self.caption, "mask_source": self.people.mask_source, "subjects": subjects}


def _bind(sample: Sample, captioned: Sample, segmented: Sample, precomputer: Precomputer) -> _Bound:
    about = segmented.json()
    instances = decode_instances(segmented.parts["instances.png"])
    people = People(
        instances, tuple(Person.from_record(record) for record in about["people"]), str(about["mask_source"])
    )
    caption = str(captioned.json()["caption"])
    words = person_words(caption)
    scores = None
    if len({word.text.lower() for word in words}) > 1 and len(people.people) > 1:
        picture, pixels = picture_of(sample), precomputer.settings.reference_pixels
        crops = [subject_crop(picture, None, person.box, pixels) for person in people.people]
        scores = precomputer.word_scores(crops, words)
    subjects = bind(words, people.people, scores, faces_of(people, sample.json().get("faces") or []))
    tokens = [(subject, precomputer.token(caption, subject)) for subject in subjects]
    # A word beyond the prompt's last token cannot carry anybody.
    return _Bound(caption, people, [(subject, token) for subject, token in tokens if token is not None])


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


def picture_of(sample: Sample) -> Image.Image:
    """The sample's photo, RGB."""
    return decode_picture(sample.parts["jpg"])


def one_bad_apple(
    work: Callable[[list[_Ready]], Sequence[_Output]],
    items: Sequence[_Input],
    batch_size: int,
    prepare: Callable[[_Input], _Ready],
) -> list[_Output | Exception]:
    """`work` on the prepared items in batches; where a batch fails, its items one by one.

    The next batch is prepared (decoded, cut) while `work` is at this one: a GPU does not wait for the JPEG decoder. An
    item that cannot be prepared costs itself. The first error is raised if everything failed.
    """

    def prepared(batch: Sequence[_Input]) -> list[_Ready | Exception]:
        return [_tried(prepare, item) for item in batch]

    results: list[_Output | Exception] = []
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    with ThreadPoolExecutor(1) as ahead:
        following = ahead.submit(prepared, batches[0]) if batches else None
        for position in range(len(batches)):
            assert following is not None
            ready = following.result()
            if position + 1 < len(batches):
                following = ahead.submit(prepared, batches[position + 1])
            done = iter(_worked(work, [item for item in ready if not isinstance(item, Exception)]))
            results += [item if isinstance(item, Exception) else next(done) for item in ready]
    if len(results) > 1 and all(isinstance(result, Exception) for result in results):
        raise next(result for result in results if isinstance(result, Exception))
    return results


def _worked(work: Callable[[list[_Ready]], Sequence[_Output]], batch: list[_Ready]) -> list[_Output | Exception]:
    if not batch:
        return []
    together = _tried(work, batch)
    if not isinstance(together, Exception):
        if len(together) != len(batch):
            raise ValueError(f"a model gave {len(together)} results for {len(batch)} photos")
        return list(together)
    if len(batch) == 1:
        return [together]
    return [_tried(lambda item: work([item])[0], item) for item in batch]


def _tried(action: Callable[[_Input], _Output], item: _Input) -> _Output | Exception:
    try:
        return action(item)
    except UserError:  # about the installation, not about a photo
        raise
    except Exception as error:
        return error


def failed(error: Exception) -> dict[str, bytes]:
    """A column's entry for a photo on which its model failed."""
    return {"json": encode_json({"refused": Reason.MODEL_FAILED.value, "detail": _say(error)})}


def _refused(stage: str, shard: str, sample: Sample, reason: Reason, detail: str) -> PhotoRow:
    about = sample.json()
    source, origin = str(about.get("source", "")), str(about.get("origin", ""))
    return PhotoRow(stage, shard, sample.key, source, origin, REFUSED, reason.value, detail)


def _say(error: Exception) -> str:
    # One line of bounded length: it goes into a table that people read.
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
