"""Folders of files wherever they lie, on disk, under an S3 prefix or in a zip, listed in one order: by their paths.

A listing opens no file and asks for nothing but names; S3 tells sizes and etags along with them. It is given out name
by name, so that a collection of any size can be looked through without being held.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

from infra.errors import UserError
from infra.s3_reading import S3Object, list_objects
from preprocessing.photos import Reason
from preprocessing.places import Place, PlaceError, holder_of, open_stream
from preprocessing.zips import zip_entries

# Also names of formats that are not read here: a photographer wants to hear that his HEIC files were refused, and why.
_PICTURE_NAMES = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .jp2 .jxl .mpo .dng .cr2 .nef .arw".split()
)
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE.txt", "COPYING", "README.txt")


@dataclass(frozen=True, slots=True)
class Found:
    """A file in a tree, or a folder that cannot be listed (then with its problem). origin: its path in the tree."""

    origin: str
    place: Place
    problem: tuple[Reason, str] | None = None


def is_picture(name: str) -> bool:
    """Whether a file's name is a picture's."""
    return name.lower().endswith(_PICTURE_NAMES) and not name.startswith(".")


class Tree(Protocol):
    """A folder of files. Origins are POSIX paths relative to it."""

    @property
    def address(self) -> str:
        """The folder's path or the prefix's address, for people."""
        ...

    @property
    def identity(self) -> bytes:
        """The same for the same place, however it was written."""
        ...

    @property
    def name(self) -> str:
        """The last part of its address."""
        ...

    def walk(self, under: str = "", wanted: Callable[[str], bool] = is_picture) -> Iterator[Found]:
        """Everything under the folder `under` whose name is `wanted`, whatever it is, sorted by origin.

        Hidden names (".x") are passed over, and folders so named with all that is in them.
        """
        ...

    def find(self, origin: str) -> Place | None:
        """The file of that path, if it is there."""
        ...

    def at(self, origin: str) -> Place:
        """Where a file of that path would be, for a record that says that it is not there."""
        ...

    def has_folder(self, folder: str) -> bool:
        """Whether there is a folder of that path with something in it."""
        ...

    def parent(self) -> "Tree":
        """The folder in which this one lies."""
        ...


def license_files(tree: Tree, folders: tuple[str, ...] = ()) -> tuple[Place, ...]:
    """LICENSE and its kin in the tree and in the named folders below it."""
    names = [f"{folder}{name}" for folder in ("", *(f"{folder}/" for folder in folders)) for name in _LICENSES]
    return tuple(place for name in names if (place := tree.find(name)) is not None)


class DiskTree:
    """A folder on disk. Links to folders are not followed, so that a loop ends; links to files are."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._only: str | None = None

    def only(self, name: str) -> "DiskTree":
        """The same folder as if it held nothing but the file of this name."""
        tree = DiskTree(self.root)
        tree._only = name
        return tree

    @property
    def address(self) -> str:
        return readable(str(self.root / (self._only or "")))

    @property
    def identity(self) -> bytes:
        return os.fsencode(self.root.resolve() / (self._only or ""))

    @property
    def name(self) -> str:
        return readable(self._only or self.root.name)

    def walk(self, under: str = "", wanted: Callable[[str], bool] = is_picture) -> Iterator[Found]:
        start = f"{under}/" if under else ""
        open_folders = [iter(self._entries(self.root / under, start, wanted))]
        while open_folders:
            for origin, folder, found in open_folders[-1]:
                if folder is not None:
                    open_folders.append(iter(self._entries(folder, origin, wanted)))
                    break
                if found is not None:
                    yield found
            else:
                open_folders.pop()

    def _entries(
        self, folder: Path, start: str, wanted: Callable[[str], bool]
    ) -> list[tuple[str, Path | None, Found | None]]:
        """(sort key, folder to go into, file to report), sorted. What cannot be listed is one file with its problem.

        A folder's key is "name/": what is in it comes where a sort of whole paths would put it.
        """
        entries: list[tuple[str, Path | None, Found | None]] = []
        try:
            with os.scandir(folder) as listing:
                for entry in listing:
                    if entry.name.startswith(".") or self._only not in (None, entry.name):
                        continue
                    origin = start + readable(entry.name)
                    # A folder named x.jpg is reported, and entered all the same: there may be photos in it.
                    if wanted(entry.name):
                        entries.append((origin, None, Found(origin, folder / entry.name)))
                    if entry.is_dir(follow_symlinks=False):
                        entries.append((f"{origin}/", folder / entry.name, None))
        except OSError as error:
            problem = (Reason.UNREADABLE, f"the folder cannot be listed: {error.strerror}")
            return [(start, None, Found(start.rstrip("/") or ".", self.root, problem))]
        return sorted(entries, key=lambda entry: entry[0])

    def find(self, origin: str) -> Place | None:
        path = self.root / origin
        return path if os.path.isfile(path) else None

    def at(self, origin: str) -> Place:
        return self.root / origin

    def has_folder(self, folder: str) -> bool:
        return os.path.isdir(self.root / folder)

    def parent(self) -> Tree:
        return DiskTree(self.root.parent)


class S3Tree:
    """The objects under a prefix of a bucket, taken for files in folders. Empty objects that mark folders are none."""

    def __init__(self, bucket: str, prefix: str = "", endpoint_url: str | None = None) -> None:
        self.bucket, self.prefix, self.endpoint_url = bucket, prefix.strip("/"), endpoint_url
        self._start = f"{self.prefix}/" if self.prefix else ""
        self._only = ""

    def only(self, name: str) -> "S3Tree":
        """The same prefix as if it held nothing but the object of this name."""
        tree = S3Tree(self.bucket, self.prefix, self.endpoint_url)
        tree._only = name
        return tree

    @property
    def address(self) -> str:
        return f"s3://{self.bucket}/{self._start}{self._only}".rstrip("/")

    @property
    def identity(self) -> bytes:
        return f"{self.endpoint_url or ''} {self.address}".encode("utf-8", "backslashreplace")

    @property
    def name(self) -> str:
        return self._only or self.prefix.rpartition("/")[2] or self.bucket

    def walk(self, under: str = "", wanted: Callable[[str], bool] = is_picture) -> Iterator[Found]:
        start = f"{self._start}{under}/" if under else self._start
        for item in list_objects(self.bucket, start + self._only, self.endpoint_url):
            *folders, name = item.key[len(start) :].split("/")
            if wanted(name) and not _hidden(folders) and self._only in ("", name):
                origin = item.key[len(self._start) :]
                yield Found(origin, item, unsafe(origin))

    def find(self, origin: str) -> Place | None:
        key = self._start + origin
        found = next(iter(list_objects(self.bucket, key, self.endpoint_url, most=1)), None)
        return found if found is not None and found.key == key else None

    def at(self, origin: str) -> Place:
        return S3Object(self.bucket, self._start + origin, 0, "", self.endpoint_url)

    def has_folder(self, folder: str) -> bool:
        key = f"{self._start}{folder}/" if folder else self._start
        return any(True for _ in list_objects(self.bucket, key, self.endpoint_url, most=1))

    def parent(self) -> Tree:
        return S3Tree(self.bucket, self.prefix.rpartition("/")[0], self.endpoint_url)


class ZipTree:
    """The files in a zip, read in place: on disk or on S3, without unpacking it."""

    def __init__(self, place: Path | S3Object) -> None:
        self.place = place

    @property
    def address(self) -> str:
        return readable(str(self.place))

    @property
    def identity(self) -> bytes:
        return os.fsencode(self.place.resolve() if isinstance(self.place, Path) else str(self.place))

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    @cached_property
    def _found(self) -> list[Found]:
        try:
            holder = holder_of(self.place)
            with open_stream(self.place) as file:
                entries = [*zip_entries(file, holder)]
        except (OSError, PlaceError) as error:
            raise UserError(f'"{self.address}" cannot be read ({error}): mend it, or give another path.') from error
        found, names = [], set[str]()
        for number, entry in enumerate(entries):
            origin = entry.name if entry.name not in names else f"{entry.name}#{number}"
            names.add(origin)
            problem = (Reason.BAD_ARCHIVE, entry.problem) if entry.problem else unsafe(entry.name)
            found.append(Found(origin, entry.member, problem))
        return sorted(found, key=lambda one: one.origin)

    def walk(self, under: str = "", wanted: Callable[[str], bool] = is_picture) -> Iterator[Found]:
        start = f"{under}/" if under else ""
        for one in self._found[bisect_left(self._found, start, key=lambda found: found.origin) :]:
            if not one.origin.startswith(start):
                return
            *folders, name = one.origin[len(start) :].replace("\\", "/").split("/")
            # The second: a name that was there once more, and got a number.
            if (wanted(name) or one.problem and wanted(name.rpartition("#")[0])) and not _hidden(folders):
                yield one

    def find(self, origin: str) -> Place | None:
        place = bisect_left(self._found, origin, key=lambda found: found.origin)
        here = place < len(self._found) and self._found[place].origin == origin and not self._found[place].problem
        return self._found[place].place if here else None

    def at(self, origin: str) -> Place:
        return self.place

    def has_folder(self, folder: str) -> bool:
        start = f"{folder}/" if folder else ""
        place = bisect_left(self._found, start, key=lambda found: found.origin)
        return place < len(self._found) and self._found[place].origin.startswith(start)

    def parent(self) -> Tree:
        return self


def _hidden(folders: Sequence[str]) -> bool:
    # The second is what a Mac puts beside the files when it packs a folder.
    return any(folder.startswith(".") and folder not in (".", "..") or folder == "__MACOSX" for folder in folders)


def unsafe(name: str) -> tuple[Reason, str] | None:
    """The problem of a path that leaves its root, or that means something else elsewhere."""
    parts = name.replace("\\", "/").split("/")
    absolute = parts[0] == "" or parts[0].endswith(":") and len(parts[0]) == 2
    if not name or absolute or not {".", ".."}.isdisjoint(parts) or "\0" in name or "\\" in name:
        return Reason.UNSAFE_PATH, f"{name[:120]!r}"
    return None


def readable(name: str) -> str:
    """A file's name as text: one that is no UTF-8 must still fit into JSON and into the catalog."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
