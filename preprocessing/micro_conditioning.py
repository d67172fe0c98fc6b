"""What SDXL is told of a picture beside its caption: its size and how it was cut (arXiv 2307.01952, §2.2).

The model has learned what pictures look like that were small before, or cut off, so that it need not draw such ones
when it is asked for a large and whole one. A training sample therefore says what is true of its photo.
"""

from collections.abc import Mapping
from typing import Any


def time_ids(about: Mapping[str, Any], pixels: int) -> tuple[int, int, int, int, int, int]:
    """(height, width, top, left, height, width): of the photo, of the cut, of the square that was cut, in pixels.

    about: a sample's json, in which ingestion put the upright photo's "size" [width, height] and "crop" [x1, y1, x2,
    y2]. pixels: the square's side. The cut is measured as SDXL's training did, in the photo resized before it is cut:
    where the square's side is the photo's shorter one, that is a photo whose shorter side has `pixels`.
    """
    width, height = about["size"]
    left, top, right, _ = about["crop"]
    scale = pixels / (right - left)
    return height, width, round(top * scale), round(left * scale), pixels, pixels
