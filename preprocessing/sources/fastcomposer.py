"""FastComposer's prepared FFHQ: photos with caption, masks and the words that the masks belong to.

A root with `image_ids.txt` (and its parts `image_ids_train.txt`, `image_ids_test.txt`), and per id `{id[:5]}/{id}.jpg`,
`.json` (`caption`; `segments` with `id`, `end`, `bbox`, `coco_label`) and `.npy` (2-D map of ids). `end` is the
character offset in the caption where the noun phrase ends. Captioning and segmentation are skipped for these photos.
"""

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import Int

from infra.errors import UserError
from preprocessing.photos import PhotoRefused, Reason, read_bytes
from preprocessing.places import Place, open_stream
from preprocessing.prepared import Prepared, PreparedSubject
from preprocessing.sources import Record, Surroundings
from preprocessing.trees import Found, Tree, license_files

IDS, TRAIN_IDS, TEST_IDS = "image_ids.txt", "image_ids_train.txt", "image_ids_test.txt"
PERSON = "person"
_KNOWN = ("license", "author", "consent", "identity")
_MOST_LIST_BYTES, _MOST_JSON_BYTES, _MOST_MAP_BYTES = 1 << 28, 1 << 22, 1 << 28
_MOST_SEGMENTS = 255  # an instance map has 8 bits


class FastComposer:
    """A root of that layout. Only people are subjects; what else its segments name is background."""

    name = "fastcomposer"
    terms = "FastComposer's data set is derived from FFHQ: CC BY-NC-SA 4.0, each photo with its own licence."

    def __init__(self, tree: Tree, around: Surroundings) -> None:
        self.tree = tree
        if tree.find(IDS) is None:
            raise UserError(f'"{tree.address}" holds no {IDS}: give the folder into which the archive was unpacked.')

    @property
    def license_files(self) -> tuple[Place, ...]:
        return license_files(self.tree)

    def records(self) -> Iterator[Record]:
        """Every picture by its path, then the ids that have none."""
        ids, twice = self._ids(IDS)
        splits = {
            one: split for split, name in (("train", TRAIN_IDS), ("test", TEST_IDS)) for one in self._ids(name)[0]
        }
        missing = dict.fromkeys(ids)
        files = self.tree.walk(wanted=lambda name: name.endswith((".jpg", ".json", ".npy")))
        for stem, group in groupby(files, key=lambda found: found.origin.rpartition(".")[0]):
            parts = {found.origin.rpartition(".")[2]: found for found in group}
            found = parts.get("jpg")
            if found is None:
                continue  # the id, if there is one, is reported as missing
            photo = stem.rpartition("/")[2]
            if stem == f"{photo[:5]}/{photo}":
                missing.pop(photo, None)
            record = Record(self.name, found.origin, found.place, split=splits.get(photo))
            yield replace(record, **_beside(photo, stem, parts, ids))
        for photo in missing:
            origin = f"{photo[:5]}/{photo}.jpg"
            problem = (Reason.MISSING_FILE, f"named in {IDS}")
            if not re.fullmatch("[0-9]{1,18}", photo):
                origin, problem = f"{IDS}#{photo[:120]}", (Reason.UNSAFE_PATH, f"{photo[:120]!r} in {IDS} is no id")
            yield Record(self.name, origin, self.tree.at(IDS), problem=problem)
        for number, photo in twice:
            problem = (Reason.BAD_ANNOTATION, f"line {number} of {IDS} names {photo[:40]!r} once more")
            yield Record(self.name, f"{IDS}#line {number}", self.tree.at(IDS), problem=problem)

    def _ids(self, name: str) -> tuple[dict[str, None], list[tuple[int, str]]]:
        """The ids of a list in its order, and (line, id) of those that stand there once more."""
        place = self.tree.find(name)
        if place is None:
            return {}, []
        address = f"{self.tree.address}/{name}"
        try:
            with open_stream(place) as file:
                data = file.read(_MOST_LIST_BYTES + 1)
        except OSError as error:
            raise UserError(f'"{address}" cannot be read as a list of ids ({error}): download it again.') from error
        if len(data) > _MOST_LIST_BYTES:
            raise UserError(f'"{address}" has more than {_MOST_LIST_BYTES} bytes and is no list of ids.')
        ids, twice = dict[str, None](), list[tuple[int, str]]()
        for number, line in enumerate(data.decode("utf-8-sig", "backslashreplace").split("\n"), start=1):
            one = line.strip()
            if one in ids:
                twice.append((number, one))
            elif one:
                ids[one] = None
        return ids, twice


def _beside(photo: str, stem: str, parts: dict[str, Found], ids: dict[str, None]) -> dict[str, Any]:
    """The record's fields that say where caption and masks are, or why it cannot be used."""
    lacking = [f"{stem}.{name}" for name in ("json", "npy") if name not in parts]
    problem = next((found.problem for found in parts.values() if found.problem), None)
    if problem is None and photo not in ids:
        problem = (Reason.MISSING_ANNOTATION, f"not in {IDS}")
    if problem is None and stem != f"{photo[:5]}/{photo}":
        problem = (Reason.BAD_ANNOTATION, f"it should be {photo[:5]}/{photo}.jpg")
    if problem is None and lacking:
        problem = (Reason.MISSING_ANNOTATION, f"no {' and no '.join(lacking)}")
    if problem is not None:
        return {"problem": problem}
    return {"beside": CaptionAndMasks(parts["json"].place, parts["npy"].place)}


@dataclass(frozen=True, slots=True)
class CaptionAndMasks:
    """The two files beside a photo."""

    json: Place
    map: Place

    def describe(self, record: Record) -> Record:
        """The record with its caption, masks and binding; PhotoRefused where one of them cannot be understood."""
        try:
            caption, segments, known = _read_json(read_bytes(self.json))
            ids = _read_map(read_bytes(self.map))
            subjects = tuple(_subject(segment, caption, ids) for segment in segments)
            if len({subject.id for subject in subjects}) != len(subjects):
                raise ValueError("two segments have one id")
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PhotoRefused(Reason.BAD_ANNOTATION, f"its json or npy: {_say(error)}") from error
        return replace(record, prepared=Prepared(caption, subjects, ids), **known)


def _read_json(data: bytes) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """The caption, the people's segments, and licence, author, consent and identity where our own export wrote them."""
    if len(data) > _MOST_JSON_BYTES:
        raise ValueError(f"{len(data)} bytes of json")
    value = json.loads(data)
    caption, segments = value["caption"], value["segments"]
    if not isinstance(caption, str) or not isinstance(segments, list) or len(segments) > _MOST_SEGMENTS:
        raise ValueError("no caption, or no list of at most 255 segments")
    caption.encode()  # a lone surrogate, which JSON can spell, is no text
    known = {name: value[name] for name in _KNOWN if isinstance(value.get(name), str)}
    "".join(known.values()).encode()
    return caption, [segment for segment in segments if segment["coco_label"] == PERSON], known


def _read_map(data: bytes) -> Int[np.ndarray, "h w"]:
    """The array of a .npy file; its header is believed only where it fits the bytes that are there."""
    if len(data) > _MOST_MAP_BYTES:
        raise ValueError(f"a map of {len(data)} bytes")
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read_header(file)
    if len(shape) != 2 or kind.kind not in "iu" or min(shape) < 1:
        raise ValueError(f"a map of {kind} {shape} where 2-D integers should be")
    if math.prod(shape) * kind.itemsize != len(data) - file.tell():
        raise ValueError(f"a map of {shape} in {len(data)} bytes")
    ids: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return ids


def _subject(segment: dict[str, Any], caption: str, ids: np.ndarray) -> PreparedSubject:
    """The segment's mask and the last word of its phrase, which names the person."""
    number, end = segment["id"], segment["end"]
    if type(number) is not int or type(end) is not int:
        raise ValueError("id or end is no integer")
    x1, y1, x2, y2 = (float(value) for value in segment["bbox"])
    if not (-1 <= x1 <= x2 <= ids.shape[1] + 1 and -1 <= y1 <= y2 <= ids.shape[0] + 1):
        raise ValueError(f"bbox {segment['bbox']!r:.60} is not in the picture")
    if not 0 < end <= len(caption) or re.match(r"\w", caption[end : end + 1]):
        raise ValueError(f"end {end} is no word's end in a caption of {len(caption)} characters")
    word = re.search(r"\w+(?:['’-]\w+)*(?=\W*$)", caption[max(end - 200, 0) : end])
    if word is None:
        raise ValueError(f"no word before {end}")
    if not (ids == number).any():
        raise ValueError(f"the map has no {number}")
    shift = max(end - 200, 0)
    return PreparedSubject(number, shift + word.start(), shift + word.end())


def _say(error: Exception) -> str:
    return f"{error.args[0]!r:.40} is missing" if isinstance(error, KeyError) else f"{str(error)[:120]}"
