"""CelebA as its authors distribute it: a folder of JPEG files and plain-text lists in `Anno/` and `Eval/`.

Every list is optional (the identities are handed out on request only); one that is there must know every photo.
Format: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from infra.errors import UserError
from preprocessing.faces import Face, face_from_5
from preprocessing.photos import Reason
from preprocessing.sources import Record
from preprocessing.sources.folder import find_license_files, find_pictures

ALIGNED, WILD = "img_align_celeba", "img_celeba"
_SPLITS = {"0": "train", "1": "validation", "2": "test"}


@dataclass
class _List:
    """One of CelebA's lists: a row of words per file name, and what is wrong with the lines that make no row."""

    name: str
    rows: dict[str, list[str]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)


class CelebA:
    """A CelebA root. The aligned pictures are read where they are there, else those in the wild."""

    name = "celeba"
    terms = "CelebA is for non-commercial research only and may not be redistributed."

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        # Some archives unpack into a folder of their own name inside itself.
        places = [f"{place}{name}" for name in (ALIGNED, WILD) for place in ("", "Img/")]
        places = [f"{place}/{Path(place).name}" for place in places] + places
        there = [place for place in places if (self.root / place).is_dir()]
        if not there:
            raise UserError(f'"{self.root}" holds neither {ALIGNED}/ nor {WILD}/, nor Img/ with one: unpack one there.')
        self.folder = min(there, key=lambda place: (ALIGNED not in place, places.index(place)))
        self.aligned = Path(self.folder).name == ALIGNED

    @property
    def license_files(self) -> tuple[Path, ...]:
        return find_license_files(self.root, ("Anno", "Eval", "Img"))

    def records(self) -> Iterator[Record]:
        """Every picture and every name in a list, in order; one that is not everywhere carries its problem."""
        identities = self._list("Anno", "identity_CelebA.txt")
        attributes = self._list("Anno", "list_attr_celeba.txt", header=True)
        landmarks = self._list("Anno", f"list_landmarks{'_align' if self.aligned else ''}_celeba.txt", header=True)
        # The boxes are in the coordinates of the pictures in the wild.
        boxes = None if self.aligned else self._list("Anno", "list_bbox_celeba.txt", header=True)
        partition = self._list("Eval", "list_eval_partition.txt")
        lists = [one for one in (identities, attributes, landmarks, boxes, partition) if one is not None]

        found = {picture.origin: picture for picture in find_pictures(self.root, self.folder)}
        listed = {f"{self.folder}/{name}" for one in lists for name in (*one.rows, *one.bad)}
        for origin in sorted(found.keys() | listed):
            name = origin.removeprefix(f"{self.folder}/")
            path = self.root / origin
            if "/" in name and origin not in found or name in (".", ".."):
                problem = (Reason.UNSAFE_PATH, f"{name[:120]!r} in {_holder(name, lists)}")
                yield Record(self.name, origin, self.root, problem=problem)
                continue
            if origin not in found:
                problem = (Reason.MISSING_FILE, f"named in {_holder(name, lists)}")
                yield Record(self.name, origin, path, problem=problem)
                continue
            problem_found = found[origin].problem or _problem(name, lists)
            if problem_found:
                yield Record(self.name, origin, path, problem=problem_found)
                continue
            try:
                yield Record(
                    source=self.name,
                    origin=origin,
                    path=path,
                    license="CelebA: non-commercial research, no redistribution",
                    identity=identities.rows[name][0] if identities else None,
                    word=_word(attributes, name) if attributes else None,
                    split=_look_up(_SPLITS, partition.rows[name][0]) if partition else None,
                    faces=_faces(name, landmarks, boxes),
                )
            except ValueError as error:
                yield Record(self.name, origin, path, problem=(Reason.BAD_ANNOTATION, str(error)[:160]))

    def _list(self, folder: str, name: str, header: bool = False) -> _List | None:
        places = [self.root / folder / name, self.root / name]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            return None
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f'"{path}" cannot be read as a CelebA list ({error}): download it again.') from error
        result = _List(name)
        lines = text.splitlines()
        start = 0
        if header:  # the number of rows, then the columns' names
            if len(lines) < 2 or not lines[0].strip().isdecimal():
                raise UserError(f'"{path}" does not begin with a count and a line of column names: download it again.')
            result.columns = [column for column in lines[1].split() if column != "image_id"]
            start = 2
        fields = len(result.columns) or 1
        for number, line in enumerate(lines[start:], start + 1):
            words = line.split()
            if not words:
                continue
            photo, values = words[0], words[1:]
            if photo in result.rows or photo in result.bad:
                result.bad[photo] = f"line {number} of {name} names it once more"
            elif len(values) != fields:
                result.bad[photo] = f"line {number} of {name} has {len(values)} values instead of {fields}"
            else:
                result.rows[photo] = values
        return result


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
    return _look_up({"1": "man", "-1": "woman"}, attributes.rows[name][attributes.columns.index("Male")])


def _look_up(names: dict[str, str], value: str) -> str:
    if value not in names:
        raise ValueError(f"{value[:40]!r} is none of {', '.join(names)}")
    return names[value]


def _faces(name: str, landmarks: _List | None, boxes: _List | None) -> tuple[Face, ...] | None:
    if landmarks is None and boxes is None:
        return None
    points: tuple[tuple[float, float], ...] = ()
    if landmarks is not None:
        values = _numbers(landmarks.rows[name])
        points = tuple(zip(values[::2], values[1::2], strict=True))
    if boxes is not None:
        x, y, width, height = _numbers(boxes.rows[name])
        if width > 0 and height > 0:  # a few official boxes are empty; their landmarks are right
            return (Face((x, y, x + width, y + height), points),)
    return (face_from_5(points),) if points else None


def _numbers(words: list[str]) -> list[float]:
    numbers = [float(word) for word in words]
    if not all(abs(number) < 1e6 for number in numbers):
        raise ValueError(f"{' '.join(words)[:80]!r} are not pixels")
    return numbers
