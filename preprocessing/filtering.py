"""Which of the people in a picture can be subjects: whose face is there, large and sharp enough, and inside the frame.

Each filter looks at one person and stands alone; a setting of 0 (max_cut: 1) switches it off. Lengths are in pixels of
the sample.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from infra.settings import FilterSettings
from preprocessing.faces import holds_centre
from preprocessing.photos import Reason
from preprocessing.segmentation import People, Person

_SHARPNESS_SIDE = 96  # pixels: every face is compared at one size


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A person of the picture who is no subject; `instance` is the number in the segmented map."""

    instance: int
    reason: Reason
    detail: str

    def record(self) -> dict[str, Any]:
        """As it stands in a sample's json."""
        return {"instance": self.instance, "reason": self.reason.value, "detail": self.detail}


def people_left_out(
    image: Image.Image,
    people: People,
    faces: Mapping[int, Mapping[str, Any]],
    other_faces: Sequence[Mapping[str, Any]],
    settings: FilterSettings,
) -> list[LeftOut]:
    """Everybody who is no subject, each for the first filter that takes them.

    faces: instance number -> the person's face; other_faces: faces that lie on nobody's mask.
    """
    left_out = []
    for person in people.people:
        mask = people.instances == person.instance
        face = faces.get(person.instance)
        why = _cut(person, mask, settings) or _face(image, mask, face, person, other_faces, settings)
        if why is not None:
            left_out.append(LeftOut(person.instance, *why))
    return left_out


def is_too_crowded(people: People, settings: FilterSettings) -> bool:
    """Whether more people are in the picture than `max_people`."""
    return 0 < settings.max_people < len(people.people)


def sharpness(image: Image.Image, box: Sequence[float]) -> float:
    """Variance of the Laplacian of a box's grey levels at 96 × 96 pixels; a small face counts as a blurred one."""
    x1, y1, x2, y2 = box
    if not (x2 > x1 and y2 > y1):
        return 0.0
    face = image.convert("L").resize(
        (_SHARPNESS_SIDE, _SHARPNESS_SIDE), Image.Resampling.BICUBIC, box=_inside(box, image)
    )
    grey = np.asarray(face, np.float32)
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(laplacian.var())


def cut_share(mask: Bool[np.ndarray, "h w"], person: Person) -> float:
    """The largest share of a person's height along the left or right edge, or width along the upper one; 0 … 1."""
    x1, y1, x2, y2 = person.box
    sides = max(mask[:, 0].sum(), mask[:, -1].sum()) / max(y2 - y1, 1)
    return float(max(sides, mask[0].sum() / max(x2 - x1, 1)))


def share_on_mask(mask: Bool[np.ndarray, "h w"], box: Sequence[float]) -> float:
    """The share of the ellipse in a face's box, as far as the picture reaches, that lies on the mask; 0 … 1."""
    height, width = mask.shape
    x1, y1, x2, y2 = box
    rows, columns = np.mgrid[0:height, 0:width] + 0.5
    radius_x, radius_y = max((x2 - x1) / 2, 0.5), max((y2 - y1) / 2, 0.5)
    face = ((columns - (x1 + x2) / 2) / radius_x) ** 2 + ((rows - (y1 + y2) / 2) / radius_y) ** 2 <= 1
    return float(mask[face].mean()) if face.any() else 0.0


def _cut(person: Person, mask: Bool[np.ndarray, "h w"], settings: FilterSettings) -> tuple[Reason, str] | None:
    if settings.max_cut < 1 and (share := cut_share(mask, person)) > settings.max_cut:
        return Reason.CUT_OFF, f"{share:.0%} along an edge, at most {settings.max_cut:.0%}"
    return None


def _face(
    image: Image.Image,
    mask: Bool[np.ndarray, "h w"],
    face: Mapping[str, Any] | None,
    person: Person,
    other_faces: Sequence[Mapping[str, Any]],
    settings: FilterSettings,
) -> tuple[Reason, str] | None:
    if face is None:
        if settings.min_face_on_mask > 0 and any(holds_centre(person.box, other["box"]) for other in other_faces):
            return Reason.FACE_OUTSIDE_MASK, "the face's centre is not on the mask"
        return (Reason.NO_FACE, Reason.NO_FACE.sentence) if settings.need_face else None
    box = face["box"]
    side = min(box[2] - box[0], box[3] - box[1])
    if settings.min_face_on_mask > 0 and (share := share_on_mask(mask, box)) < settings.min_face_on_mask:
        return Reason.FACE_OUTSIDE_MASK, f"{share:.0%} on the mask, at least {settings.min_face_on_mask:.0%}"
    if side < settings.min_face:
        return Reason.FACE_TOO_SMALL, f"{side:.0f} pixels, at least {settings.min_face:g}"
    if settings.min_sharpness > 0 and (found := sharpness(image, box)) < settings.min_sharpness:
        return Reason.BLURRED, f"sharpness {found:.1f}, at least {settings.min_sharpness:g}"
    return None


def _inside(box: Sequence[float], image: Image.Image) -> tuple[float, float, float, float]:
    x1, y1 = min(max(box[0], 0), image.width - 1), min(max(box[1], 0), image.height - 1)
    return x1, y1, max(min(box[2], image.width), x1 + 1), max(min(box[3], image.height), y1 + 1)
