"""Where photos come from: one module per kind of source, one line per kind in `SOURCES`."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from infra.errors import UserError
from infra.s3_reading import S3Object
from preprocessing.faces import Face
from preprocessing.photos import Reason
from preprocessing.places import Place
from preprocessing.prepared import Prepared
from preprocessing.trees import DiskTree, S3Tree, Tree, ZipTree


@dataclass(frozen=True)
class Record:
    """One photo as its source describes it; nothing has been decoded yet.

    origin: stable name inside the source, a POSIX relative path.
    path: the file, or the part of an archive or the object on S3, that holds its bytes.
    faces: None = the source does not know, () = it says that there is nobody.
    size [bytes], md5 [hex] and pixels (width, height) are what the source's own lists say and are checked where given.
    problem: the source itself cannot stand by the photo; it is refused unread.
    twin: which other records of the source may be the same photo, for people who wonder about a duplicate.
    beside: files that belong to the photo and are read with it, not when the source is listed.
    consent: what the people shown agreed to, and where that is kept.
    about: what else goes into the sample's json. prepared: caption, masks and binding, where they were made before.
    """

    source: str
    origin: str
    path: Place
    license: str = ""
    author: str = ""
    identity: str | None = None
    word: str | None = None
    split: str | None = None
    faces: tuple[Face, ...] | None = None
    md5: str | None = None
    size: int | None = None
    pixels: tuple[int, int] | None = None
    problem: tuple[Reason, str] | None = None
    twin: str = ""
    beside: "Beside | None" = None
    about: Mapping[str, Any] | None = None
    prepared: Prepared | None = None
    consent: str = ""


class Beside(Protocol):
    """Files beside a photo, unread. Small and picklable: it travels with its record to whoever reads the photo."""

    def describe(self, record: Record) -> Record:
        """The record with what the files say; PhotoRefused where they say nothing that can be understood."""
        ...


class Source(Protocol):
    """A place with photos. `records` always gives the same photos in the same order while the files stay the same.

    It lists, and opens no photo: which of its records are new is seen by their origins.
    """

    @property
    def name(self) -> str:
        """Goes into every record and the catalog; together with `Record.origin` it names a photo."""
        ...

    @property
    def terms(self) -> str:
        """The licence of the collection as a whole; each record may carry its photo's own."""
        ...

    @property
    def license_files(self) -> tuple[Place, ...]:
        """The licence texts that came with the files."""
        ...

    def records(self) -> Iterator[Record]: ...


def _silent(title: str, done: float, total: float) -> None:
    pass


@dataclass(frozen=True)
class Surroundings:
    """What a source may use beside its own files.

    cache: a folder for what cannot be read in place (7z parts) or is slow to list (tars on S3); None = do without.
    tell: called with (title, done, total) where something takes longer than a second.
    """

    cache: Path | None = None
    tell: Callable[[str, float, float], None] = _silent


def _late(module: str, name: str) -> Callable[[Tree, Surroundings], Source]:
    """A class of `preprocessing.sources`, imported when it is used: it imports `Record` from here."""
    return lambda tree, around: getattr(import_module(f"preprocessing.sources.{module}"), name)(tree, around)


# A new kind of source: a module with such a class, and a line here.
SOURCES: dict[str, Callable[[Tree, Surroundings], Source]] = {
    "ffhq": _late("ffhq", "FFHQ"),
    "celeba": _late("celeba", "CelebA"),
    "folder": _late("folder", "Folder"),
    "fastcomposer": _late("fastcomposer", "FastComposer"),
    "webdataset": _late("webdataset", "WebDataset"),
    "paperfolk": _late("paperfolk_source", "Paperfolk"),
}


def open_source(spec: str, endpoint_url: str | None = None, around: Surroundings | None = None) -> Source:
    """The source that "kind:PATH" names; UserError where the kind is unknown or the path holds no such data set.

    PATH is a folder, a .zip, for a webdataset also one .tar, or s3://bucket/prefix (on `endpoint_url`, None = AWS).
    """
    kind, colon, path = spec.partition(":")
    choices = ", ".join(f"{name}:PATH" for name in SOURCES)
    if kind not in SOURCES or not colon or not path:
        raise UserError(f'The source "{spec[:200]}" is none of {choices}: write for example folder:~/photos.')
    return SOURCES[kind](open_tree(kind, path, endpoint_url), around or Surroundings())


def open_tree(kind: str, path: str, endpoint_url: str | None = None) -> Tree:
    """The files at a source's path; UserError where there are none."""
    if path.startswith("s3://"):
        return _open_prefix(kind, path, endpoint_url)
    if re.match(r"[a-z][a-z0-9+.-]*:", path) and not os.path.exists(path):  # pipe:, http://, gs:// ...
        raise UserError(f'"{path[:200]}" is no place that is read here: give a folder or s3://bucket/prefix.')
    root = Path(os.path.expanduser(path))  # pathlib's own raises for a user who is none
    if os.path.isdir(root):  # os.path, for pathlib raises on names too long for a file system
        return DiskTree(root)
    if os.path.isfile(root) and root.suffix.lower() == ".zip":
        return ZipTree(root.absolute())
    if os.path.isfile(root) and root.suffix.lower() == ".tar" and kind == "webdataset":
        return DiskTree(root.parent).only(root.name)
    problem = "is not a folder" if os.path.exists(root) else "does not exist"
    raise UserError(f'The source folder "{path[:200]}" {problem}: give the path of a folder in "{kind}:PATH".')


def _open_prefix(kind: str, address: str, endpoint_url: str | None) -> Tree:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
        raise UserError(f'"{address[:200]}" names no bucket: write {kind}:s3://bucket/prefix.')
    tree = S3Tree(bucket, prefix, endpoint_url)
    if prefix.lower().endswith((".zip", ".tar")):
        archive = S3Tree(bucket, "", endpoint_url).find(prefix)
        if isinstance(archive, S3Object) and prefix.lower().endswith(".zip"):
            return ZipTree(archive)
        if archive is not None and kind == "webdataset":
            folder, _, name = prefix.rpartition("/")
            return S3Tree(bucket, folder, endpoint_url).only(name)
    if not tree.has_folder(""):
        raise UserError(f'There is nothing under "{address[:200]}" on {endpoint_url or "AWS"}: mend the address.')
    return tree
