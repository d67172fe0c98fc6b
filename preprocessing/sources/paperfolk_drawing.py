"""A Paperfolk picture drawn: layered paper, the instance map, landmarks and, if asked, the map of parts."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from preprocessing.sources.paperfolk_canvas import PART_INDEX, PARTS, SUPERSAMPLING, Canvas
from preprocessing.sources.paperfolk_people import draw_person, landmarks_of
from preprocessing.sources.paperfolk_scenes import BACKDROPS
from preprocessing.sources.paperfolk_world import Picture

__all__ = ["PARTS", "SUPERSAMPLING", "Drawing", "draw"]


@dataclass(frozen=True)
class Drawing:
    """A drawn picture and its exact masks."""

    image: Image.Image  # RGB, pixels × pixels
    instances: UInt8[np.ndarray, "h w"]  # 0 = nobody, k = the k-th person from the left
    parts: Int[np.ndarray, "h4 w4"] | None  # index into PARTS at the drawing's own (fourfold) resolution
    landmarks: list[list[tuple[float, float]]]  # 68 points a person, in pixels of `image`


def draw(picture: Picture, pixels: int = 64, parts: bool = False) -> Drawing:
    """Draw a picture at `pixels` × `pixels`, with its instance map and landmarks (and, if asked, its map of parts)."""
    c = Canvas(pixels * SUPERSAMPLING, parts)
    if c.part_pen:
        c.part = PART_INDEX[picture.scene]
        c.part_pen.rectangle((0, 0, c.side, c.side), fill=c.part)
    BACKDROPS[picture.scene](c, np.random.default_rng(picture.variation))
    landmarks = []
    for instance, person in enumerate(picture.people, start=1):
        draw_person(c, person, instance)
        landmarks.append([(x / SUPERSAMPLING, y / SUPERSAMPLING) for x, y in c.at(landmarks_of(person))])
    large = np.asarray(c.instances)
    instances = np.zeros((pixels, pixels), np.uint8)
    for instance in range(1, len(picture.people) + 1):
        cover = (large == instance).reshape(pixels, SUPERSAMPLING, pixels, SUPERSAMPLING).mean((1, 3))
        instances[cover >= 0.5] = instance
    return Drawing(c.image.reduce(SUPERSAMPLING), instances, np.asarray(c.parts) if c.parts else None, landmarks)
