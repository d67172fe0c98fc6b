"""Paperfolk's poses: what a pose detector would draw of a picture, but from its truth. A ControlNet is trained on them.

Light bones on black, a colour per bone as pose detectors have it: trunk, shoulders, neck and head of everybody, and the
arms of those who hold something (the others have no hands). Nothing of it tells who somebody is.
"""

import numpy as np
from PIL import Image, ImageDraw

from preprocessing.sources.paperfolk_canvas import SUPERSAMPLING, Points, oval
from preprocessing.sources.paperfolk_world import Color, Person, Picture

_WIDTH = 0.09  # of a bone, in heads
_TRUNK: Color = (0, 160, 255)
_SHOULDERS: Color = (255, 96, 0)
_NECK: Color = (0, 220, 110)
_HEAD: Color = (235, 40, 170)
_ARMS: Color = (255, 210, 0)
_EYES: Color = (255, 255, 255)
# draw_person lays out what is held in a frame of its own, a little higher and larger than the head's.
_HAND = (0.4 * 1.18, 1.3 * 1.18 - 0.12)


def draw_pose(picture: Picture, pixels: int = 64) -> Image.Image:
    """The poses of a picture's people, RGB, `pixels` × `pixels`."""
    side = pixels * SUPERSAMPLING
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    for person in picture.people:
        unit = person.unit * side
        for points, color in _bones(person):
            xy = [(person.x * side + x * unit, person.y * side + y * unit) for x, y in points]
            pen.line(xy, fill=color, width=round(_WIDTH * unit), joint="curve")
    return image.reduce(SUPERSAMPLING)


def draw_poses(pictures: list[Picture], pixels: int = 64) -> np.ndarray:
    """uint8 [n, pixels, pixels, 3]."""
    return np.stack([np.asarray(draw_pose(picture, pixels)) for picture in pictures])


def _bones(person: Person) -> list[tuple[Points, Color]]:
    """Lines in heads around the head's centre."""
    wide = 0.86 if person.identity.word == "man" else 0.68  # the torso's
    shoulder, look = wide - 0.06, 0.07 * person.turn
    bones: list[tuple[Points, Color]] = [
        ([(0, 0.62), (0, 2.6)], _TRUNK),
        ([(-shoulder, 0.74), (0, 0.62), (shoulder, 0.74)], _SHOULDERS),
        ([(0, 0.62), (0, 0.46)], _NECK),
        (oval(0, 0, 0.42, 0.48), _HEAD),
        ([(look, 0.02), (look, 0.16)], _HEAD),
        *(([(look + side * 0.19 - 0.05, -0.03), (look + side * 0.19 + 0.05, -0.03)], _EYES) for side in (-1, 1)),
    ]
    if person.held:
        x, y = _HAND
        for side in (-1, 1):
            bones.append(([(side * shoulder, 0.74), (side * (shoulder + 0.06), 1.5), (side * x, y)], _ARMS))
    return bones
