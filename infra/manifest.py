"""A release's manifest: its files with role, size and SHA-256. It may come from strangers: nothing in it is believed.

    {"format": "moa-release/1", "model": "moa", "digest": SHA-256 of the rest, "files": {
      "adapter.safetensors": {"media_type": …, "role": "weights", "size": 374017024, "sha256": …, "parts": […]}, …}}

It says what a release is, not who made it when: the same files are the same manifest, byte for byte, and its digest's
first 16 hex digits are the release's id. A file above `PART_BYTES` lists the SHA-256 of each part of that size, too, so
that of an interrupted or damaged download the right parts can be kept.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.storage import check_key

FORMAT = "moa-release/1"
MANIFEST = "manifest.json"
SIGNATURE = "model.sig"  # beside a pulled release (`infra.release_signatures`), never one of its files
PART_BYTES = 16 * 2**20  # S3 takes 10,000 parts of an upload and none below 5 MiB
ID_DIGITS = 16
MAX_BYTES = 4 * 2**20  # of a manifest: 600 GB in parts
_MAX_FILES = 1000
_MAX_FILE_BYTES = 2**40
_NAME_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,119}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXT = re.compile(r"[a-z0-9][a-z0-9.+/-]{0,79}")
_ROLES = {"README.md": "card", "adapter_config.json": "config", "metrics.json": "metrics", "lineage.json": "lineage"}
_MEDIA_TYPES = {
    "json": "application/json",
    "md": "text/markdown",
    "safetensors": "application/vnd.safetensors",
    "html": "text/html",
    "png": "image/png",
    "jpg": "image/jpeg",
}


class BadManifest(ValueError):
    """Why a manifest cannot be used, as the end of a sentence."""


@dataclass(frozen=True)
class Content:
    """What bytes are: how many, their SHA-256, and that of each part where there is more than one."""

    size: int
    sha256: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReleaseFile:
    """One file of a release. role: what it is for ("weights", "config", "card", "metrics", "lineage", "other")."""

    name: str
    content: Content
    role: str
    media_type: str


@dataclass(frozen=True)
class Manifest:
    """The files of a release, sorted by name. folder: where an old release keeps them; "" = among the blobs."""

    model: str
    files: tuple[ReleaseFile, ...]
    digest: str
    data: bytes = field(repr=False)
    folder: str = ""

    @property
    def id(self) -> str:
        """The release's id."""
        return self.digest[:ID_DIGITS]

    def file(self, name: str) -> ReleaseFile | None:
        """The file of that name."""
        return next((file for file in self.files if file.name == name), None)

    def key(self, file: ReleaseFile) -> str:
        """Where the file's bytes lie in the store."""
        return f"{self.folder}/{file.name}" if self.folder else blob_key(file.content.sha256)


def blob_key(sha256: str) -> str:
    """Where the bytes with this digest lie in the store."""
    return f"blobs/sha256/{sha256[:2]}/{sha256}"


def describe_name(name: str, content: Content) -> ReleaseFile:
    """The file with the role and the media type that its name says."""
    suffix = name.rpartition(".")[2]
    role = _ROLES.get(name, "weights" if suffix == "safetensors" else "other")
    return ReleaseFile(name, content, role, _MEDIA_TYPES.get(suffix, "application/octet-stream"))


def make_manifest(model: str, files: Iterable[ReleaseFile]) -> Manifest:
    """The manifest of these files. Raises ValueError for names that a release cannot have."""
    files = tuple(sorted(files, key=lambda file: file.name))
    _check_names([file.name for file in files])
    described = {"format": FORMAT, "model": model, "files": {file.name: _described(file) for file in files}}
    digest = hashlib.sha256(to_json(described)).hexdigest()
    return Manifest(model, files, digest, to_json({**described, "digest": digest}))


def read_manifest(data: bytes) -> Manifest:
    """The manifest in these bytes. Raises BadManifest for all that `make_manifest` would not have written."""
    value = parse_json(data)
    if value.get("format") != FORMAT:
        raise BadManifest(_unknown_format(value.get("format"), FORMAT))
    _check_fields(value, {"format", "model", "files", "digest"}, "it")
    if not isinstance(value["model"], str) or not _TEXT.fullmatch(value["model"]):
        raise BadManifest("its model has no proper name")
    files = [_read_file(name, about) for name, about in _entries(value["files"])]
    try:
        made = make_manifest(value["model"], files)
    except ValueError as error:
        raise BadManifest(str(error)) from error
    if made.data != data:
        raise BadManifest("it was altered: it does not have its own digest")
    return made


def read_old_files(value: object) -> tuple[ReleaseFile, ...]:
    """The "files" of a manifest without a format, {name: {"sha256", "size"}}. Raises BadManifest."""
    files = []
    for name, about in _entries(value):
        _check_fields(about, {"sha256", "size"}, repr(name))
        files.append(describe_name(name, Content(_size(name, about["size"]), _digest(name, about["sha256"]))))
    try:
        _check_distinct([check_key(file.name) for file in files])
    except ValueError as error:
        raise BadManifest(str(error)) from error
    return tuple(files)


def parse_json(data: bytes, most: int = MAX_BYTES) -> dict[str, Any]:
    """A JSON object, no key twice, no NaN, not too deep, at most so many bytes. Raises BadManifest."""
    if len(data) > most:
        raise BadManifest(f"it has {len(data):,} bytes, and {most:,} are the most that is read")
    try:
        value = json.loads(data, object_pairs_hook=_without_repeats, parse_constant=_no_number)
    except BadManifest:
        raise
    except (ValueError, RecursionError) as error:
        raise BadManifest(f"it is not JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise BadManifest("it is not a JSON object")
    return value


def to_json(value: object) -> bytes:
    """JSON of one form: the same value is the same bytes."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False).encode() + b"\n"


def part_spans(size: int) -> list[tuple[int, int]]:
    """(first byte, size) of each part of a file; one for an empty file."""
    return [(start, min(PART_BYTES, size - start)) for start in range(0, max(size, 1), PART_BYTES)]


def _described(file: ReleaseFile) -> dict[str, Any]:
    content = file.content
    about = {"size": content.size, "sha256": content.sha256, "role": file.role, "media_type": file.media_type}
    return {**about, "parts": list(content.parts)} if content.parts else about


def _read_file(name: str, about: Any) -> ReleaseFile:
    parts = about.get("parts") if isinstance(about, dict) else None
    _check_fields(
        about, {"size", "sha256", "role", "media_type"} | ({"parts"} if parts is not None else set()), repr(name)
    )
    size, sha256 = _size(name, about["size"]), _digest(name, about["sha256"])
    for text in (about["role"], about["media_type"]):
        if not isinstance(text, str) or not _TEXT.fullmatch(text):
            raise BadManifest(f"{name!r} has no proper role or media type")
    wanted = len(part_spans(size)) if size > PART_BYTES else 0
    if not isinstance(parts or [], list) or len(parts or []) != wanted or parts == []:
        raise BadManifest(f"{name!r} does not list its {wanted} parts")
    content = Content(size, sha256, tuple(_digest(name, part) for part in parts or []))
    return ReleaseFile(name, content, about["role"], about["media_type"])


def _entries(files: object) -> Iterable[tuple[str, Any]]:
    if not isinstance(files, dict) or not files:
        raise BadManifest("it lists no files")
    if len(files) > _MAX_FILES:
        raise BadManifest(f"it lists {len(files):,} files, more than any release has")
    return files.items()


def _check_fields(value: object, wanted: set[str], whose: str) -> None:
    if not isinstance(value, Mapping) or value.keys() != wanted:
        raise BadManifest(f"{whose[:80]} does not have exactly the fields {', '.join(sorted(wanted))}")


def _check_names(names: list[str]) -> None:
    for name in names:
        if not all(map(_NAME_PART.fullmatch, name.split("/"))) or len(name) > 240:
            raise ValueError(f"{name[:80]!r} cannot be a file of a release")
    _check_distinct(names)


def _check_distinct(names: list[str]) -> None:
    """One file each also where the file system does not tell a from A; none is another one's folder."""
    seen = {MANIFEST, SIGNATURE}
    for name in sorted(name.casefold() for name in names):
        parents = {name.rsplit("/", depth)[0] for depth in range(1, name.count("/") + 1)}
        if name in seen or parents & seen:
            raise ValueError(f"{name[:80]!r} is there twice")
        seen.add(name)


def _size(name: str, size: object) -> int:
    if type(size) is not int or not 0 <= size <= _MAX_FILE_BYTES:
        raise BadManifest(f"{name[:80]!r} has no proper size")
    return size


def _digest(name: str, digest: object) -> str:
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise BadManifest(f"{name[:80]!r} has no proper SHA-256")
    return digest


def _unknown_format(found: object, known: str) -> str:
    if isinstance(found, str) and re.fullmatch(r"moa-[a-z]+/[0-9]{1,4}", found):
        return f"it is of the format {found}, and this moa reads {known}: update moa"
    return "it does not say a format that is known here"


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadManifest("it says something twice")
    return found


def _no_number(name: str) -> float:
    raise BadManifest(f"it holds {name}, which is no number")
