"""Flickr-Faces-HQ as its authors distribute it: `ffhq-dataset-v2.json` beside folders of PNG files.

Format: https://github.com/NVlabs/ffhq-dataset. Each photo has its own licence and author, which travel with it.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import UserError
from preprocessing.faces import Face, face_from_68
from preprocessing.photos import Reason
from preprocessing.sources import Record
from preprocessing.sources.folder import Found, find_license_files, find_pictures

JSON_NAME = "ffhq-dataset-v2.json"
# The folders a download may hold, best first, and the part of an entry that describes each.
FOLDERS = {"images1024x1024": "image", "thumbnails128x128": "thumbnail", "in-the-wild-images": "in_the_wild"}
_BLOCK = 1 << 20  # characters of the json read at a time


class FFHQ:
    """An FFHQ root. Only one folder of pictures is read: the largest version that is there."""

    name = "ffhq"
    terms = (
        "FFHQ is CC BY-NC-SA 4.0 by NVIDIA, each photo has its own licence (CC BY 2.0, CC BY-NC 2.0, public domain, "
        "CC0 or US government); not intended for facial recognition."
    )

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.json_path = self.root / JSON_NAME
        if not self.json_path.is_file():
            raise UserError(f'"{self.root}" holds no {JSON_NAME}: give the folder that the download script filled.')
        folders = [folder for folder in FOLDERS if (self.root / folder).is_dir()]
        if not folders:
            raise UserError(f'"{self.root}" holds none of the folders {", ".join(FOLDERS)}: download one first.')
        self.folder = folders[0]

    @property
    def license_files(self) -> tuple[Path, ...]:
        return find_license_files(self.root, tuple(FOLDERS))

    def records(self) -> Iterator[Record]:
        """Every entry of the json and every picture of the folder, by path; one not in both carries its problem."""
        found = {picture.origin: picture for picture in find_pictures(self.root, self.folder)}
        records: dict[str, Record] = {}
        for key, entry in _entries(self.json_path):
            record = self._record(key, entry, found)
            if record.origin in records:
                # Two entries for one file: it is not known which of them is right about it, the second is set aside.
                problem = (Reason.BAD_ANNOTATION, f"entry {key} names {record.origin} once more")
                record = Record(self.name, f"{JSON_NAME}#{key}", self.json_path, problem=problem)
            records[record.origin] = record
        for origin, picture in found.items():
            if origin not in records:
                problem = picture.problem or (Reason.MISSING_ANNOTATION, f"not in {JSON_NAME}")
                records[origin] = Record(self.name, origin, picture.path, problem=problem)
        for origin in sorted(records):
            yield records[origin]

    def _record(self, key: str, entry: Any, found: dict[str, Found]) -> Record:
        origin = f"{JSON_NAME}#{key}"
        try:
            part = entry[FOLDERS[self.folder]]
            path = PurePosixPath(_text(part["file_path"]))
            if path.is_absolute() or ".." in path.parts or "\\" in str(path) or "\0" in str(path) or not path.parts:
                problem = (Reason.UNSAFE_PATH, f"entry {key}: {str(path)[:120]!r}")
                return Record(self.name, origin, self.json_path, problem=problem)
            origin = str(path)
            if path.parts[0] != self.folder:
                raise ValueError(f"{origin} is not in {self.folder}")
            metadata = entry.get("metadata", {})
            md5 = _text(part["file_md5"]).lower()
            if not re.fullmatch("[0-9a-f]{32}", md5):
                raise ValueError(f"file_md5 {md5[:40]!r} is not an MD5 digest")
            pixels = _pixels(part.get("pixel_size"))
            record = Record(
                source=self.name,
                origin=origin,
                path=self.root / origin,
                license=_text(metadata.get("license") or ""),
                author=_text(metadata.get("author") or ""),
                split=_text(entry.get("category") or "") or None,
                faces=self._faces(entry, pixels),
                md5=md5,
                size=int(part["file_size"]),
                pixels=pixels,
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            problem = (Reason.BAD_ANNOTATION, f"entry {key}: {_missing(error)}")
            return Record(self.name, origin, self.root / origin, problem=problem)
        if origin in found:
            return record
        return Record(self.name, origin, record.path, problem=(Reason.MISSING_FILE, f"entry {key} of {JSON_NAME}"))

    def _faces(self, entry: dict[str, Any], pixels: tuple[int, int] | None) -> tuple[Face, ...] | None:
        """One face. The thumbnail has no landmarks of its own: it is the aligned picture, smaller."""
        part = entry["in_the_wild" if self.folder == "in-the-wild-images" else "image"]
        landmarks = part.get("face_landmarks")
        if landmarks is None:
            return None
        full = _pixels(part.get("pixel_size"))
        scale = pixels[0] / full[0] if self.folder == "thumbnails128x128" and pixels and full else 1.0
        return (face_from_68(landmarks, scale),)


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The members of the json's one object, one at a time: the official file of 268 MB would take 3 GB as a whole."""
    decoder = json.JSONDecoder()
    try:
        with open(path, encoding="utf-8") as file:
            text, place, ended = "", 0, False

            def more() -> None:
                nonlocal text, place, ended
                block = file.read(_BLOCK)
                text, place, ended = text[place:] + block, 0, not block

            def token() -> str:
                """The next character that is no white space, or "" at the end."""
                nonlocal place
                while True:
                    while place < len(text) and text[place] in " \t\r\n":
                        place += 1
                    if place < len(text) or ended:
                        return text[place : place + 1]
                    more()

            def value() -> Any:
                nonlocal place
                token()
                while True:
                    try:
                        result, end = decoder.raw_decode(text, place)
                        # A number at the end of a block may go on in the next one, even as "0." does.
                        if ended or text[end : end + 1] in tuple(" \t\r\n,:}"):
                            place = end
                            return result
                    except json.JSONDecodeError as error:
                        if ended:
                            raise ValueError(str(error)) from error
                    more()

            def expect(characters: str) -> str:
                nonlocal place
                got = token()
                if not got or got not in characters:
                    raise ValueError(f"{got!r} where one of {characters!r} should be")
                place += 1
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
        raise UserError(f'"{path}" cannot be read as FFHQ\'s json ({error}): download it again.') from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not text")
    return value


def _pixels(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    width, height = (int(side) for side in value)
    if width < 1 or height < 1:
        raise ValueError(f"pixel_size {width} x {height}")
    return width, height


def _missing(error: Exception) -> str:
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)[:120]
