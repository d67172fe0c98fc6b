"""Paperfolk's canvas: sheets of paper with a soft shadow, and the exact masks that go with them.

Everything is drawn four times too large and averaged down by `paperfolk_drawing.draw`.
"""

import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from preprocessing.sources.paperfolk_world import SCENES, Color

SUPERSAMPLING = 4
INK: Color = (38, 32, 44)
PAPER: Color = (250, 246, 238)
# What a patch of a picture may show: dense labels from which the demo's small vision towers learn quickly.
PARTS = (
    *SCENES,
    *("skin", "hair", "shirt", "hat", "glasses", "eye", "mouth", "beard", "earring", "hand"),
    *("roses", "book", "basketball", "cat"),
)
PART_INDEX = {name: index for index, name in enumerate(PARTS)}
Points = list[tuple[float, float]]


def mix(color: Color, other: Color, share: float) -> Color:
    return tuple(round(a + (b - a) * share) for a, b in zip(color, other, strict=True))  # type: ignore[return-value]


class Canvas:
    """Draws one shape into the picture, the instance map and (if asked) the part map at once."""

    def __init__(self, side: int, parts: bool) -> None:
        self.side = side
        self.image = Image.new("RGB", (side, side), PAPER)
        self.pen = ImageDraw.Draw(self.image, "RGBA")
        self.instances = Image.new("L", (side, side), 0)
        self.instance_pen = ImageDraw.Draw(self.instances)
        self.parts = Image.new("L", (side, side), 0) if parts else None
        self.part_pen = ImageDraw.Draw(self.parts) if self.parts else None
        self.instance = 0
        self.part = 0
        self.frame(0.0, 0.0, 1.0)

    def frame(self, x: float, y: float, unit: float) -> None:
        """Coordinates from now on: origin (x, y) and length unit, as fractions of the picture's side."""
        self.x, self.y, self.unit = x * self.side, y * self.side, unit * self.side

    def at(self, points: Points, dx: float = 0.0, dy: float = 0.0) -> Points:
        return [(self.x + (px + dx) * self.unit, self.y + (py + dy) * self.unit) for px, py in points]

    def polygon(self, points: Points, color: Color, part: str = "", shadow: float = 0.0) -> None:
        if shadow:
            self.pen.polygon(self.at(points, shadow * 0.5, shadow), fill=(*INK, 52))
        xy = self.at(points)
        self.pen.polygon(xy, fill=color)
        self.instance_pen.polygon(xy, fill=self.instance)
        if self.part_pen:
            self.part = PART_INDEX[part] if part else self.part
            self.part_pen.polygon(xy, fill=self.part)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, color: Color, part: str = "", shadow: float = 0.0
    ) -> None:
        self.polygon(oval(x, y, rx, ry), color, part, shadow)

    def inside(self, outline: Points, marks: list[Points], color: Color) -> None:
        """Marks printed on a sheet: only where they fall inside its outline, and no new instance."""
        sheet = Image.new("L", (self.side, self.side), 0)
        ImageDraw.Draw(sheet).polygon(self.at(outline), fill=255)
        print_ = Image.new("L", (self.side, self.side), 0)
        pen = ImageDraw.Draw(print_)
        for mark in marks:
            pen.polygon(self.at(mark), fill=255)
        self.image.paste(color, mask=ImageChops.darker(sheet, print_))

    def gradient(self, top: Color, bottom: Color) -> None:
        ramp = np.linspace(0, 1, self.side)[:, None, None]
        rows = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
        self.image.paste(Image.fromarray(np.broadcast_to(rows, (self.side, self.side, 3)).astype(np.uint8)))


def oval(x: float, y: float, rx: float, ry: float, power: float = 2.0, start: float = 0.0, end: float = 1.0) -> Points:
    """Points of a super-ellipse: power 2 is an ellipse, 4 nearly a rectangle.

    From `start` to `end` in turns, clockwise from the right.
    """
    count = max(8, round(28 * (end - start)))
    angles = [2 * math.pi * (start + (end - start) * i / count) for i in range(count + 1)]
    return [
        (
            x + rx * math.copysign(abs(math.cos(a)) ** (2 / power), math.cos(a)),
            y + ry * math.copysign(abs(math.sin(a)) ** (2 / power), math.sin(a)),
        )
        for a in angles
    ]


def box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def hill(left: float, right: float, top: float, rng: np.random.Generator, rough: float) -> Points:
    xs = np.linspace(left, right, 13)
    wave = np.sin(xs * rng.uniform(4, 7) + rng.uniform(0, 6)) * rough
    return [*((float(x), float(top + w)) for x, w in zip(xs, wave, strict=True)), (right, 1.3), (left, 1.3)]
