"""Flickr-Faces-HQ as its authors distribute it: `ffhq-dataset-v2.json` beside folders of PNG files.

Format: https://github.com/NVlabs/ffhq-dataset. Each photo has its own licence and author, which travel with it.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from infra.errors import UserError
from preprocessing.faces import Face, face_from_68
from preprocessing.photos import Reason
from preprocessing.places import Place, open_stream
from preprocessing.sources import Record, Surroundings
from preprocessing.trees import Found, Tree, license_files, unsafe

JSON_NAME = "ffhq-dataset-v2.json"
# The folders a download may hold, best first, and the part of an entry that describes each.
FOLDERS = {"images1024x1024": "image", "thumbnails128x128": "thumbnail", "in-the-wild-images": "in_the_wild"}
_BLOCK = 1 << 20  # characters of the json read at a time
_LONGEST = 16 << 20  # characters; an official entry has 4,000
_MOST_FACES = 64  # of one photo in the wild: a list that gives every entry the same MD5 must not take all memory


class FFHQ:
    """An FFHQ root, or one of its folders of pictures. Of a root the largest version that is there is read."""

    name = "ffhq"
    terms = (
        "FFHQ is CC BY-NC-SA 4.0 by NVIDIA, each photo has its own licence (CC BY 2.0, CC BY-NC 2.0, public domain, "
        "CC0 or US government); not intended for facial recognition."
    )

    def __init__(self, tree: Tree, around: Surroundings) -> None:
        folders = list(FOLDERS)
        if tree.name in FOLDERS and tree.find(JSON_NAME) is None:
            tree, folders = tree.parent(), [tree.name]
        self.tree = tree
        json_place = tree.find(JSON_NAME)
        if json_place is None:
            raise UserError(f'"{tree.address}" holds no {JSON_NAME}: give the folder that the download script filled.')
        self.json_place = json_place
        there = next((folder for folder in folders if tree.has_folder(folder)), None)
        if there is None:
            raise UserError(f'"{tree.address}" holds none of the folders {", ".join(FOLDERS)}: download one first.')
        self.folder, self.wild = there, FOLDERS[there] == "in_the_wild"

    @property
    def license_files(self) -> tuple[Place, ...]:
        return license_files(self.tree, tuple(FOLDERS))

    def records(self) -> Iterator[Record]:
        """Every entry of the json in its order, then the pictures that it does not name; each once, right or wrong."""
        found = {picture.origin: picture for picture in self.tree.walk(self.folder)}
        shared = self._shared(found) if self.wild else {}
        seen = set[str]()
        for key, entry in _entries(self.json_place, self.tree.address):
            record = self._record(key, entry, found, shared)
            if record.origin in seen:
                record = self._again(key, record, shared)
            while record.origin in seen:  # the json has the key more than once
                record = replace(record, origin=f"{record.origin}'")
            seen.add(record.origin)
            yield record
        for origin, picture in found.items():
            if origin not in seen:
                problem = picture.problem or (Reason.MISSING_ANNOTATION, f"not in {JSON_NAME}")
                yield Record(self.name, origin, picture.place, problem=problem)

    def _shared(self, found: Mapping[str, Found]) -> dict[str, dict[str, Face | None]]:
        """MD5 -> {key: face} of the photos in the wild that several entries cut a face from.

        Which of two equal files is kept is known when they are read, so each of them has the faces of all. The face of
        the first entry is not among them: it is added when its turn comes.
        """
        first = dict[str, str]()
        shared = dict[str, dict[str, Face | None]]()
        for key, entry in _entries(self.json_place, self.tree.address):
            record = self._record(key, entry, found, {})
            if record.md5 is None or record.faces is None or record.problem:
                continue
            if first.setdefault(record.md5, key) != key:
                faces = shared.setdefault(record.md5, {first[record.md5]: None})
                faces[key] = record.faces[0]
        return shared

    def _again(self, key: str, record: Record, shared: Mapping[str, Mapping[str, Face | None]]) -> Record:
        """An entry for a file that has one: it is not known which of them is right, so the second is set aside."""
        path = record.origin
        problem = (Reason.BAD_ANNOTATION, f"entry {_printable(key)} names {path} once more")
        if record.md5 in shared and not record.problem:
            problem = (Reason.DUPLICATE, f"entry {_printable(key)}: {path} is there already, with this face too")
        origin = f"{JSON_NAME}#{_printable(key)}"
        return Record(self.name, origin, self.json_place, problem=problem)

    def _record(
        self, key: str, entry: Any, found: Mapping[str, Found], shared: Mapping[str, dict[str, Face | None]]
    ) -> Record:
        name = _printable(key)
        origin = f"{JSON_NAME}#{name}"
        try:
            part = entry[FOLDERS[self.folder]]
            path = _text(part["file_path"])
            if problem := unsafe(path):
                return Record(self.name, origin, self.json_place, problem=(problem[0], f"entry {name}: {problem[1]}"))
            origin = str(PurePosixPath(path))
            if not origin.startswith(f"{self.folder}/"):
                raise ValueError(f"{origin[:120]} is not in {self.folder}")
            metadata = entry.get("metadata", {})
            md5 = _text(part["file_md5"]).lower()
            if not re.fullmatch("[0-9a-f]{32}", md5):
                raise ValueError(f"file_md5 {md5[:40]!r} is not an MD5 digest")
            pixels = _pixels(part.get("pixel_size"))
            faces = self._faces(entry, pixels)
            twins = shared.get(md5)
            if twins and faces:
                twins[key] = faces[0]
                faces = tuple(islice((face for face in twins.values() if face is not None), _MOST_FACES))
            record = Record(
                source=self.name,
                origin=origin,
                path=found[origin].place if origin in found else self.tree.at(origin),
                license=_text(metadata.get("license") or ""),
                author=_text(metadata.get("author") or ""),
                split=_text(entry.get("category") or "") or None,
                faces=faces,
                md5=md5,
                size=int(part["file_size"]),
                pixels=pixels,
                twin=f"one photo of entries {', '.join(map(_printable, islice(twins, 9)))}" if twins else "",
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            problem = (Reason.BAD_ANNOTATION, f"entry {name}: {_missing(error)}")
            return Record(self.name, origin, self.tree.at(origin), problem=problem)
        if origin in found:
            return record
        return Record(self.name, origin, record.path, problem=(Reason.MISSING_FILE, f"entry {name} of {JSON_NAME}"))

    def _faces(self, entry: dict[str, Any], pixels: tuple[int, int] | None) -> tuple[Face, ...] | None:
        """One face. The thumbnail has no landmarks of its own: it is the aligned picture, smaller."""
        part = entry["in_the_wild" if self.wild else "image"]
        landmarks = part.get("face_landmarks")
        if landmarks is None:
            return None
        full = _pixels(part.get("pixel_size"))
        scale = pixels[0] / full[0] if self.folder == "thumbnails128x128" and pixels and full else 1.0
        face = face_from_68(landmarks, scale)
        return (replace(face, quad=_quad(part.get("face_quad"))) if self.wild else face,)


def _entries(place: Place, address: str) -> Iterator[tuple[str, Any]]:
    """The members of the json's one object, one at a time: the official file of 268 MB would take 3 GB as a whole."""
    decoder = json.JSONDecoder()
    try:
        with io.TextIOWrapper(open_stream(place), encoding="utf-8") as file:
            text, at, ended = "", 0, False

            def more() -> None:
                nonlocal text, at, ended
                block = file.read(_BLOCK)
                text, at, ended = text[at:] + block, 0, not block

            def token() -> str:
                """The next character that is no white space, or "" at the end."""
                nonlocal at
                while True:
                    while at < len(text) and text[at] in " \t\r\n":
                        at += 1
                    if at < len(text) or ended:
                        return text[at : at + 1]
                    more()

            def value() -> Any:
                nonlocal at
                token()
                while True:
                    try:
                        result, end = decoder.raw_decode(text, at)
                        # A number at the end of a block may go on in the next one, even as "0." does.
                        if ended or text[end : end + 1] in tuple(" \t\r\n,:}"):
                            at = end
                            return result
                    except json.JSONDecodeError as error:
                        if ended:
                            raise ValueError(str(error)) from error
                    if len(text) - at > _LONGEST:
                        raise ValueError(f"an entry of more than {_LONGEST} characters")
                    more()

            def expect(characters: str) -> str:
                nonlocal at
                got = token()
                if not got or got not in characters:
                    raise ValueError(f"{got!r} where one of {characters!r} should be")
                at += 1
                return got

            expect("{")
            if token() == "}":
                return
            while True:
                key = value()
                if not isinstance(key, str):
                    raise ValueError(f"the key {key!r} is not a string")
                expect(":")
                yield key, value()
                if expect(",}") == "}":
                    return
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        name = f"{address}/{JSON_NAME}"
        raise UserError(f'"{name}" cannot be read as FFHQ\'s json ({str(error)[:200]}): download it again.') from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not text")
    value.encode()  # a lone surrogate, which JSON can spell, fits neither into a file's name nor into the catalog
    return value


def _printable(key: str) -> str:
    return key[:120].encode("utf-8", "backslashreplace").decode()


def _quad(value: Any) -> tuple[tuple[float, float], ...]:
    if value is None:
        return ()
    points = tuple((float(x), float(y)) for x, y in value)
    if len(points) != 4 or not all(abs(number) < 1e6 for point in points for number in point):
        raise ValueError("face_quad is not four points")
    return points


def _pixels(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    width, height = (int(side) for side in value)
    if width < 1 or height < 1:
        raise ValueError(f"pixel_size {width} x {height}")
    return width, height


def _missing(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)[:120]
