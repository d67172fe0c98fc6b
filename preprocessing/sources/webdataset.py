"""A webdataset: tars of pictures, each with what belongs to it under the same name (`.json`, `.txt`, `.cls`).

Read by the tars' headers, in place, and without trust: nothing is unpacked, piped or followed. A caption or a class
that comes along is kept as `text` and `label`; captions are made anew all the same, for what stands beside a picture on
the web seldom names the people in it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.s3_reading import S3Object
from preprocessing.photos import PhotoRefused, Reason, read_bytes
from preprocessing.places import Holder, Place, Span, holder_of, open_stream
from preprocessing.sources import Record, Surroundings
from preprocessing.sources.folder import source_name
from preprocessing.tars import TarEntry, tar_entries
from preprocessing.trees import Found, Tree, is_picture, license_files, unsafe

_TARS, _COMPRESSED = (".tar",), (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ARCHIVES = (".tar", ".zip", ".7z", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".rar")
_BESIDE = ("json", "txt", "cls")
_MOST_BESIDE_BYTES = 1 << 20
_MOST_TEXT = 10_000  # characters that are kept


class WebDataset:
    """A folder or prefix of .tar files, or one of them."""

    terms = ""

    def __init__(self, tree: Tree, around: Surroundings) -> None:
        self.tree, self.cache = tree, around.cache
        self.name = source_name("webdataset", tree)
        if next(iter(tree.walk(wanted=_is_tar)), None) is None:
            raise UserError(f'"{tree.address}" holds no .tar: give the folder of a webdataset, or one of its shards.')

    @property
    def license_files(self) -> tuple[Place, ...]:
        return license_files(self.tree)

    def records(self) -> Iterator[Record]:
        """The tars by their names, the pictures of each in its order; odd members, each with its problem."""
        for tar in self.tree.walk(wanted=_is_tar):
            if tar.problem:
                yield Record(self.name, tar.origin, tar.place, problem=tar.problem)
            elif not tar.origin.lower().endswith(_TARS) or not isinstance(tar.place, Path | S3Object):
                # Without random access each photo would cost all that is before it, and a bomb could hide there.
                problem = (Reason.BAD_ARCHIVE, "a compressed tar, or one inside a zip, is not read: unpack that first")
                yield Record(self.name, tar.origin, tar.place, problem=problem)
            else:
                yield from self._tar(tar, tar.place)

    def _tar(self, tar: Found, place: Path | S3Object) -> Iterator[Record]:
        seen = set[str]()
        try:
            holder = holder_of(place)
            for _, group in groupby(self._entries(place, holder), key=_stem):
                for record in self._sample(tar, holder, list(group)):
                    while record.origin in seen:
                        problem = record.problem or (Reason.BAD_ARCHIVE, "the tar holds this name once more")
                        record = replace(record, origin=f"{record.origin}'", problem=problem)
                    seen.add(record.origin)
                    yield record
        except OSError as error:
            problem = (Reason.UNREADABLE, f"the tar cannot be read: {getattr(error, 'strerror', None) or error}"[:160])
            yield Record(self.name, tar.origin, place, problem=problem)

    def _sample(self, tar: Found, holder: Holder, entries: list[TarEntry]) -> Iterator[Record]:
        """The records of the members that share a name up to its first dot."""
        sound = [entry for entry in entries if not entry.problem and not unsafe(entry.name)]
        pictures = [entry for entry in sound if is_picture(entry.name.rpartition("/")[2])]
        # "x.jpg" is the photo and "x.mask.png" belongs to it; "my.photo.jpg" alone is a photo with a dot in its name.
        plain = [entry for entry in pictures if entry.name.rpartition("/")[2].count(".") == 1]
        chosen = {id(entry) for entry in plain or pictures}
        beside = {suffix: entry for entry in sound if (suffix := entry.name.rpartition(".")[2].lower()) in _BESIDE}
        places = tuple((suffix, Span(holder, entry.start, entry.size)) for suffix, entry in sorted(beside.items()))
        for entry in entries:
            origin, problem = f"{tar.origin}/{entry.name}", unsafe(entry.name)
            if entry.problem:
                origin = origin if entry.name else f"{tar.origin}#{entry.start}"
                problem = (Reason.BAD_ARCHIVE, entry.problem)
            elif problem is None and entry.name.lower().endswith(_ARCHIVES):
                problem = (Reason.BAD_ARCHIVE, "an archive in an archive is not opened")
            if problem:
                yield Record(self.name, origin, tar.place, problem=problem)
            elif id(entry) in chosen:
                span = Span(holder, entry.start, entry.size)
                yield Record(self.name, origin, span, beside=Companions(places) if places else None)

    def _entries(self, place: Path | S3Object, holder: Holder) -> Iterable[TarEntry]:
        """The tar's headers; those of a tar on S3, which take long to collect, are remembered by its etag."""
        if self.cache is None or not isinstance(holder, S3Object):
            return _read_headers(place, holder)
        path = self.cache / "tars" / f"{hashlib.sha256(repr(holder).encode()).hexdigest()[:32]}.json"
        try:
            return [
                TarEntry(name, start, size, problem) for name, start, size, problem in json.loads(path.read_bytes())
            ]
        except (OSError, ValueError, TypeError):
            entries = list(_read_headers(place, holder))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.partial")
        part.write_text(
            json.dumps([[entry.name, entry.start, entry.size, entry.problem] for entry in entries]), "utf-8"
        )
        os.replace(part, path)
        return entries


def _read_headers(place: Path | S3Object, holder: Holder) -> Iterator[TarEntry]:
    with open_stream(place) as file:
        yield from tar_entries(file, holder.size)


@dataclass(frozen=True, slots=True)
class Companions:
    """What lies beside a picture: (suffix, place) of its json, txt and cls."""

    places: tuple[tuple[str, Place], ...]

    def describe(self, record: Record) -> Record:
        """The record with licence, author, consent and identity from the json, `text` and `label` for the sample.

        PhotoRefused where a file is too large or the json is none.
        """
        about, fields = dict[str, Any](), dict[str, Any]()
        for suffix, place in self.places:
            size = getattr(place, "size", 0)
            if size > _MOST_BESIDE_BYTES:
                raise PhotoRefused(Reason.BAD_ANNOTATION, f"{size} bytes of {suffix}")
            data = read_bytes(place) if size else b""
            if suffix == "json":
                fields = _read_object(data)
            else:
                text = data.decode("utf-8", "backslashreplace").strip()
                about["text" if suffix == "txt" else "label"] = text[:_MOST_TEXT]
        if "text" not in about and isinstance(fields.get("caption"), str):
            about["text"] = _text(fields["caption"])[:_MOST_TEXT]
        known: dict[str, Any] = {
            name: _text(fields[name]) for name in ("license", "author", "consent") if isinstance(fields.get(name), str)
        }
        identity = fields.get("identity")
        if isinstance(identity, str | int) and not isinstance(identity, bool):
            known["identity"] = _text(str(identity))
        return replace(record, about=about, **known)


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PhotoRefused(Reason.BAD_ANNOTATION, f"its json: {str(error)[:120]}") from error
    if not isinstance(value, dict):
        raise PhotoRefused(Reason.BAD_ANNOTATION, "its json is no object")
    return value


def _text(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()  # JSON can spell what is no text


def _is_tar(name: str) -> bool:
    return name.lower().endswith(_TARS + _COMPRESSED)


def _stem(entry: TarEntry) -> str:
    folder, slash, name = entry.name.rpartition("/")
    return folder + slash + name.partition(".")[0]
