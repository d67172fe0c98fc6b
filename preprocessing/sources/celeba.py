"""CelebA as its authors distribute it: JPEG files in a folder, a zip or 7z parts, and lists in `Anno/` and `Eval/`.

Every list is optional (the identities are handed out on request only); one that is there must know every photo.
A photo has the same origin whether its archive was unpacked or not. Format: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from infra.errors import UserError
from infra.s3_reading import S3Object
from preprocessing.faces import Face, face_from_5
from preprocessing.photos import Reason
from preprocessing.places import Place, open_stream
from preprocessing.seven_zip import find_parts, unpacked
from preprocessing.sources import Record, Surroundings
from preprocessing.trees import Found, Tree, ZipTree, license_files

ALIGNED, WILD = "img_align_celeba", "img_celeba"
_SPLITS = {"0": "train", "1": "validation", "2": "test"}
_MOST_LIST_BYTES = 1 << 28  # the longest official list has 27 MB


@dataclass
class _List:
    """One of CelebA's lists: the rest of the line per file name, and what is wrong with the lines that make no row."""

    name: str
    rows: dict[str, str] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


class CelebA:
    """A CelebA root. The aligned pictures are read where they are there, else those in the wild.

    7z parts have no random access: they are unpacked once, into the cache, when the records are first asked for.
    """

    name = "celeba"
    terms = "CelebA is for non-commercial research only and may not be redistributed."

    def __init__(self, tree: Tree, around: Surroundings) -> None:
        self.tree, self.around = tree, around
        self.archive: Place | None = None
        self.parts: list[Path | S3Object] = []
        for name in (ALIGNED, WILD):
            if self._found(name):
                break
        else:
            raise UserError(
                f'"{tree.address}" holds neither {ALIGNED} nor {WILD}, as a folder, a .zip or .7z parts, nor Img/ with '
                "one: give the folder with Anno/ and Img/."
            )
        self.aligned = Path(self.folder).name == ALIGNED

    def _found(self, name: str) -> bool:
        """Set where the pictures lie, and `folder`, their path once unpacked."""
        # Some archives unpack into a folder of their own name inside itself.
        for self.folder in (f"{name}/{name}", f"Img/{name}/{name}", name, f"Img/{name}"):
            if self.tree.has_folder(self.folder):
                return True
        for self.folder in (name, f"Img/{name}"):
            self.archive = self.tree.find(f"{self.folder}.zip")
            self.parts = [] if self.archive else find_parts(self.tree, self.folder)
            if self.archive or self.parts:
                return True
        return False

    @property
    def license_files(self) -> tuple[Place, ...]:
        return license_files(self.tree, ("Anno", "Eval", "Img"))

    def records(self) -> Iterator[Record]:
        """Every picture and every name in a list, in order; one that is not everywhere carries its problem."""
        identities = self._list("Anno", "identity_CelebA.txt")
        attributes = self._list("Anno", "list_attr_celeba.txt", header=True)
        landmarks = self._list("Anno", f"list_landmarks{'_align' if self.aligned else ''}_celeba.txt", header=True)
        # The boxes are in the coordinates of the pictures in the wild.
        boxes = None if self.aligned else self._list("Anno", "list_bbox_celeba.txt", header=True)
        partition = self._list("Eval", "list_eval_partition.txt")
        lists = [one for one in (identities, attributes, landmarks, boxes, partition) if one is not None]

        listed = sorted({f"{self.folder}/{name}" for one in lists for name in (*one.rows, *one.bad)})
        names = ((origin, None) for origin in listed)
        both = heapq.merge(((one.origin, one) for one in self._pictures()), names, key=lambda pair: pair[0])
        for origin, pair in groupby(both, key=lambda pair: pair[0]):
            found = next((one for _, one in pair if one is not None), None)
            name = origin.removeprefix(f"{self.folder}/")
            path = found.place if found is not None else self.tree.at(self.folder)
            problem = self._problem(name, found, lists)
            if problem:
                yield Record(self.name, origin, path, problem=problem)
                continue
            try:
                yield Record(
                    source=self.name,
                    origin=origin,
                    path=path,
                    license="CelebA: non-commercial research, no redistribution",
                    identity=identities.rows[name].strip() if identities else None,
                    word=_word(attributes, name) if attributes else None,
                    split=_look_up(_SPLITS, partition.rows[name].strip()) if partition else None,
                    faces=_faces(name, landmarks, boxes),
                )
            except ValueError as error:
                yield Record(self.name, origin, path, problem=(Reason.BAD_ANNOTATION, str(error)[:160]))

    def _problem(self, name: str, found: Found | None, lists: list[_List]) -> tuple[Reason, str] | None:
        if found is None and ("/" in name or name in (".", "..")):
            return Reason.UNSAFE_PATH, f"{name[:120]!r} in {_holder(name, lists)}"
        if found is None:
            return Reason.MISSING_FILE, f"named in {_holder(name, lists)}"
        return found.problem or _problem(name, lists)

    def _pictures(self) -> Iterator[Found]:
        """The pictures by their origins, sorted, wherever they lie."""
        if self.parts:
            yield from _moved(unpacked(self.parts, self.around, f"{Path(self.folder).name}.7z"), self.folder)
        elif isinstance(self.archive, Path | S3Object):
            yield from _moved(ZipTree(self.archive).walk(), self.folder)
        elif self.archive is not None:
            raise UserError(f'"{self.tree.address}" is a zip with a zip inside: unpack the outer one.')
        else:
            yield from self.tree.walk(self.folder)

    def _list(self, folder: str, name: str, header: bool = False) -> _List | None:
        place = self.tree.find(f"{folder}/{name}") or self.tree.find(name)
        if place is None:
            return None
        address = f"{self.tree.address}/{name}"
        try:
            with open_stream(place) as file:
                data = file.read(_MOST_LIST_BYTES + 1)
        except OSError as error:
            raise UserError(f'"{address}" cannot be read as a CelebA list ({error}): download it again.') from error
        if len(data) > _MOST_LIST_BYTES:
            raise UserError(
                f'"{address}" has more than {_MOST_LIST_BYTES} bytes and is no CelebA list: download it again.'
            )
        # A byte that is no UTF-8 costs its own line. Only line feeds end a line: names may hold other separators.
        lines = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "backslashreplace").split("\n")
        result = _List(name)
        start = 0
        if header:  # the number of rows, then the columns' names
            if not lines[0].strip().isdecimal() or not "".join(lines[1:2]).strip():
                raise UserError(
                    f'"{address}" does not begin with a count and a line of column names: download it again.'
                )
            result.columns = [column for column in lines[1].split() if column != "image_id"]
            start = 2
        fields = len(result.columns) or 1
        for number, line in enumerate(lines[start:], start + 1):
            photo, *rest = line.split(maxsplit=1)[:2] or [""]
            values = len(rest[0].split()) if rest else 0
            if not photo:
                continue
            if photo in result.rows or photo in result.bad:
                result.bad[photo] = f"line {number} of {name} names it once more"
            elif values != fields:
                result.bad[photo] = f"line {number} of {name} has {values} values instead of {fields}"
            else:
                result.rows[photo] = rest[0]
        return result


def _moved(pictures: Iterator[Found], folder: str) -> list[Found]:
    """An archive's members under the origins that they have once it is unpacked."""
    name, moved = Path(folder).name, dict[str, Found]()
    for picture in pictures:
        inside, problem = picture.origin, picture.problem
        while inside.startswith(f"{name}/"):
            inside = inside.removeprefix(f"{name}/")
        origin = f"{folder}/{inside}"
        if origin in moved:
            origin, problem = f"{origin}#{len(moved)}", problem or (Reason.BAD_ARCHIVE, "the name is there once more")
        moved[origin] = Found(origin, picture.place, problem)
    return sorted(moved.values(), key=lambda picture: picture.origin)


def _problem(name: str, lists: list[_List]) -> tuple[Reason, str] | None:
    for one in lists:
        if name in one.bad:
            return Reason.BAD_ANNOTATION, one.bad[name]
    missing = [one.name for one in lists if name not in one.rows]
    return (Reason.MISSING_ANNOTATION, f"no line in {', '.join(missing)}") if missing else None


def _holder(name: str, lists: list[_List]) -> str:
    return ", ".join(one.name for one in lists if name in one.rows or name in one.bad)


def _word(attributes: _List, name: str) -> str:
    if "Male" not in attributes.columns:
        raise ValueError(f"{attributes.name} has no column Male")
    return _look_up({"1": "man", "-1": "woman"}, attributes.rows[name].split()[attributes.columns.index("Male")])


def _look_up(names: dict[str, str], value: str) -> str:
    if value not in names:
        raise ValueError(f"{value[:40]!r} is none of {', '.join(names)}")
    return names[value]


def _faces(name: str, landmarks: _List | None, boxes: _List | None) -> tuple[Face, ...] | None:
    if landmarks is None and boxes is None:
        return None
    points: tuple[tuple[float, float], ...] = ()
    if landmarks is not None:
        values = _numbers(landmarks.rows[name].split())
        points = tuple(zip(values[::2], values[1::2], strict=True))
    if boxes is not None:
        x, y, width, height = _numbers(boxes.rows[name].split())
        if width > 0 and height > 0:  # a few official boxes are empty; their landmarks are right
            return (Face((x, y, x + width, y + height), points),)
    return (face_from_5(points),) if points else None


def _numbers(words: list[str]) -> list[float]:
    numbers = [float(word) for word in words]
    if not all(abs(number) < 1e6 for number in numbers):
        raise ValueError(f"{' '.join(words)[:80]!r} are not pixels")
    return numbers
