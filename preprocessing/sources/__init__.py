"""Where photos come from: one module per kind of source, one line per kind in `SOURCES`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from infra.errors import UserError
from preprocessing.faces import Face
from preprocessing.photos import Reason


@dataclass(frozen=True)
class Record:
    """One photo as its source describes it; nothing has been decoded yet.

    origin: stable name inside the source, a POSIX relative path.
    faces: None = the source does not know, () = it says that there is nobody.
    size [bytes], md5 [hex] and pixels (width, height) are what the source's own lists say and are checked where given.
    problem: the source itself cannot stand by the photo; it is refused unread.
    """

    source: str
    origin: str
    path: Path
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


class Source(Protocol):
    """A place with photos. `records` always gives the same photos in the same order while the files stay the same."""

    @property
    def name(self) -> str:
        """Goes into every record and the catalog; together with `Record.origin` it names a photo."""
        ...

    @property
    def terms(self) -> str:
        """The licence of the collection as a whole; each record may carry its photo's own."""
        ...

    @property
    def license_files(self) -> tuple[Path, ...]:
        """The licence texts that came with the files."""
        ...

    def records(self) -> Iterator[Record]: ...


def _ffhq(root: Path) -> Source:
    from preprocessing.sources.ffhq import FFHQ

    return FFHQ(root)


def _celeba(root: Path) -> Source:
    from preprocessing.sources.celeba import CelebA

    return CelebA(root)


def _folder(root: Path) -> Source:
    from preprocessing.sources.folder import Folder

    return Folder(root)


# A new kind of source: a module with such a class, and a line here. Imported late: they import `Record` from here.
SOURCES: dict[str, Callable[[Path], Source]] = {"ffhq": _ffhq, "celeba": _celeba, "folder": _folder}


def open_source(spec: str) -> Source:
    """The source that "kind:PATH" names; UserError where the kind is unknown or the path holds no such data set."""
    kind, colon, path = spec.partition(":")
    choices = ", ".join(f"{name}:PATH" for name in SOURCES)
    if kind not in SOURCES or not colon or not path:
        raise UserError(f'The source "{spec}" is none of {choices}: write for example folder:~/photos.')
    root = Path(path).expanduser()
    if not os.path.isdir(root):  # os.path, for pathlib raises on names too long for a file system
        problem = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UserError(f'The source folder "{path[:200]}" {problem}: give the path of a folder in "{kind}:PATH".')
    return SOURCES[kind](root)
