"""Where the people of a picture are, as told by a callable that someone else owns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from PIL import Image


@dataclass(frozen=True)
class Found:
    """One person (or face) in one picture.

    `box` is [x1, y1, x2, y2] in pixels, x2 and y2 exclusive. `mask` has the picture's height and width; a face detector
    has none to give.
    """

    box: tuple[float, float, float, float]
    mask: Bool[np.ndarray, "H W"] | None = None
    score: float = 1.0

    @classmethod
    def from_mask(cls, mask_HW: Bool[np.ndarray, "H W"], score: float = 1.0) -> "Found":
        """The person that `mask_HW` covers; ValueError when the mask is empty."""
        rows, columns = np.nonzero(mask_HW)
        if rows.size == 0:
            raise ValueError("an empty mask shows nobody.")
        box = (float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1))
        return cls(box=box, mask=mask_HW.astype(bool), score=score)

    def edges(self, image: Image.Image) -> tuple[int, int, int, int]:
        """The box's edges, cut to whole pixels inside the picture as MTCNN cuts a face."""
        x1, y1, x2, y2 = self.box
        return int(max(x1, 0)), int(max(y1, 0)), int(min(x2, image.width)), int(min(y2, image.height))

    def region(self, image: Image.Image) -> Bool[np.ndarray, "H W"]:
        """The mask, or the box's pixels where there is no mask."""
        if self.mask is not None:
            return self.mask
        region_HW = np.zeros((image.height, image.width), bool)
        x1, y1, x2, y2 = (max(0, round(edge)) for edge in self.box)
        region_HW[y1:y2, x1:x2] = True
        return region_HW


# Pictures in; for each the people in it, the most prominent first, [] for nobody.
Locate = Callable[[Sequence[Image.Image]], Sequence[Sequence[Found]]]


def people_mask(image: Image.Image, people: Sequence[Found]) -> Bool[np.ndarray, "H W"]:
    """Every pixel that shows somebody."""
    mask_HW = np.zeros((image.height, image.width), bool)
    for person in people:
        mask_HW |= person.region(image)
    return mask_HW


def people_from_instances(instances_HW: np.ndarray) -> list[Found]:
    """People of an instance picture (0 = nobody, k = person k), largest first."""
    people = [Found.from_mask(instances_HW == number) for number in np.unique(instances_HW) if number != 0]
    return sorted(people, key=_pixels, reverse=True)


def _pixels(person: Found) -> int:
    return 0 if person.mask is None else int(person.mask.sum())
