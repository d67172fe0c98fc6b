"""A plain folder of photos, with folders inside it; nothing is known but the files' names."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocessing.photos import Reason
from preprocessing.sources import Record

# Also names of formats that are not read here: a photographer wants to hear that his HEIC files were refused, and why.
_PICTURE_NAMES = (
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif .jp2 .jxl .mpo .dng .cr2 .nef .arw"
).split()


@dataclass(frozen=True)
class Found:
    """A name in a folder that looks like a picture's, or a folder that cannot be listed (then with its problem)."""

    origin: str
    path: Path
    problem: tuple[Reason, str] | None = None


def find_pictures(root: Path, under: str = "") -> list[Found]:
    """Everything under root/under that is named like a picture, whatever it is, sorted by its path relative to `root`.

    Hidden names are passed over. Links to folders are not followed, so that a loop ends; links to files are.
    """
    found: list[Found] = []
    top = root / under if under else root

    def unlisted(error: OSError) -> None:
        path = Path(error.filename) if error.filename else top
        problem = (Reason.UNREADABLE, f"the folder cannot be listed: {error.strerror}")
        found.append(Found(_origin(path, root), path, problem))

    for folder, folders, files in os.walk(top, onerror=unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # A folder named x.jpg is reported, and entered all the same: there may be photos in it.
        for name in (*files, *folders):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in _PICTURE_NAMES:
                path = Path(folder, name)
                found.append(Found(_origin(path, root), path))
    return sorted(found, key=lambda picture: picture.origin)


def find_license_files(root: Path, folders: tuple[str, ...] = ()) -> tuple[Path, ...]:
    """LICENSE and its kin in `root` and in the named folders below it."""
    names = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE.txt", "COPYING", "README.txt")
    places = (root, *(root / folder for folder in folders))
    return tuple(place / name for place in places for name in names if (place / name).is_file())


def _origin(path: Path, root: Path) -> str:
    # A name that is no UTF-8 must still fit into JSON and into the catalog.
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")


class Folder:
    """Any photographs. Captions, masks and faces are all found by the later stages."""

    terms = ""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        # Two folders may both hold 1.jpg: the place is part of the name. A folder that moved is read again, and its
        # photos are then refused as the duplicates they are.
        digest = hashlib.sha256(os.fsencode(self.root.resolve())).hexdigest()[:8]
        self.name = f"folder:{_origin(self.root, self.root.parent)}-{digest}"

    @property
    def license_files(self) -> tuple[Path, ...]:
        return find_license_files(self.root)

    def records(self) -> Iterator[Record]:
        for picture in find_pictures(self.root):
            yield Record(self.name, picture.origin, picture.path, problem=picture.problem)
