"""Paperfolk drawn: layered paper shapes with a soft shadow under each sheet, and the exact masks that go with them.

Everything is drawn four times too large and averaged down. Lengths inside a person are in units of the head's height, with the
head's centre at (0, 0), x to the right and y down.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageChops, ImageDraw

from preprocessing.sources.paperfolk_world import CLOTH, EYES, HAIR_COLORS, LIPS, SCENES, SKINS, Color, Person, Picture

SUPERSAMPLING = 4
INK: Color = (38, 32, 44)
PAPER: Color = (250, 246, 238)
# What a patch of a picture may show: dense labels from which the demo's small vision towers learn quickly.
PARTS = (
    *SCENES,
    *("skin", "hair", "shirt", "hat", "glasses", "eye", "mouth", "beard", "earring", "hand"),
    *("roses", "book", "basketball", "cat"),
)
_PART_INDEX = {name: index for index, name in enumerate(PARTS)}
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Drawing:
    """A drawn picture and its exact masks."""

    image: Image.Image  # RGB, pixels × pixels
    instances: UInt8[np.ndarray, "h w"]  # 0 = nobody, k = the k-th person from the left
    parts: Int[np.ndarray, "h4 w4"] | None  # index into PARTS at the drawing's own (fourfold) resolution
    landmarks: list[list[tuple[float, float]]]  # 68 points a person, in pixels of `image`


def _mix(color: Color, other: Color, share: float) -> Color:
    return tuple(round(a + (b - a) * share) for a, b in zip(color, other, strict=True))  # type: ignore[return-value]


class _Canvas:
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
            self.part = _PART_INDEX[part] if part else self.part
            self.part_pen.polygon(xy, fill=self.part)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, color: Color, part: str = "", shadow: float = 0.0
    ) -> None:
        self.polygon(_oval(x, y, rx, ry), color, part, shadow)

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


def _oval(x: float, y: float, rx: float, ry: float, power: float = 2.0, start: float = 0.0, end: float = 1.0) -> Points:
    """Points of a super-ellipse (power 2 is an ellipse, 4 nearly a rectangle), from `start` to `end` turns, clockwise from the right."""
    count = max(8, round(28 * (end - start)))
    angles = [2 * math.pi * (start + (end - start) * i / count) for i in range(count + 1)]
    return [
        (
            x + rx * math.copysign(abs(math.cos(a)) ** (2 / power), math.cos(a)),
            y + ry * math.copysign(abs(math.sin(a)) ** (2 / power), math.sin(a)),
        )
        for a in angles
    ]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _hill(left: float, right: float, top: float, rng: np.random.Generator, rough: float) -> Points:
    xs = np.linspace(left, right, 13)
    wave = np.sin(xs * rng.uniform(4, 7) + rng.uniform(0, 6)) * rough
    return [*((float(x), float(top + w)) for x, w in zip(xs, wave, strict=True)), (right, 1.3), (left, 1.3)]


# ---------------------------------------------------------------------------------------------------------------- scenes


def _beach(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((116, 200, 250), (222, 244, 252))
    c.ellipse(rng.uniform(0.1, 0.9), 0.13, 0.085, 0.085, (255, 224, 92), shadow=0.015)
    c.polygon(_hill(-0.1, 1.1, 0.47, rng, 0.004), (28, 118, 196), shadow=-0.01)
    c.polygon(_hill(-0.1, 1.1, 0.58, rng, 0.012), (70, 176, 220))
    c.polygon(_hill(-0.1, 1.1, 0.66, rng, 0.02), (246, 220, 158), shadow=-0.02)
    x = 0.1 if rng.random() < 0.5 else 0.9
    c.polygon([(x - 0.025, 0.8), (x - 0.01, 0.3), (x + 0.015, 0.3), (x + 0.03, 0.8)], (140, 92, 54), shadow=0.012)
    for dx, dy in ((-0.17, 0.05), (-0.13, -0.08), (0.02, -0.12), (0.14, -0.06), (0.17, 0.06)):
        c.polygon([(x - 0.02, 0.31), (x + dx, 0.3 + dy), (x + 0.03, 0.27)], (34, 140, 82), shadow=0.01)


def _forest(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((176, 222, 168), (224, 240, 198))
    c.polygon(_hill(-0.1, 1.1, 0.55, rng, 0.03), (118, 178, 106))
    for x in np.linspace(0.0, 1.0, 5) + rng.uniform(-0.05, 0.05, 5):
        top = rng.uniform(0.08, 0.26)
        green = _mix((24, 92, 54), (46, 124, 68), float(rng.random()))
        c.polygon(_box(x - 0.02, 0.6, x + 0.02, 0.8), (104, 70, 44))
        for k in range(3):
            y = top + k * 0.15
            c.polygon([(x, y), (x + 0.09 + k * 0.025, y + 0.22), (x - 0.09 - k * 0.025, y + 0.22)], green, shadow=0.014)
    c.polygon(_hill(-0.1, 1.1, 0.77, rng, 0.015), (62, 136, 70), shadow=-0.015)


def _city(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((20, 20, 58), (66, 46, 104))
    c.ellipse(rng.uniform(0.12, 0.88), 0.12, 0.065, 0.065, (246, 240, 214))
    for x in np.linspace(-0.05, 0.9, 6):
        width, top = rng.uniform(0.13, 0.2), rng.uniform(0.18, 0.5)
        c.polygon(_box(x, top, x + width, 1.1), _mix((34, 32, 70), (60, 52, 96), float(rng.random())), shadow=0.015)
        for wy in np.arange(top + 0.05, 0.95, 0.11):
            for wx in np.arange(x + 0.03, x + width - 0.04, 0.075):
                if rng.random() < 0.6:
                    c.polygon(_box(wx, wy, wx + 0.036, wy + 0.055), (255, 214, 96))


def _snow(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((164, 190, 222), (226, 236, 246))
    for x, height in zip((0.08, 0.5, 0.92), rng.uniform(0.2, 0.34, 3), strict=True):
        c.polygon([(x - 0.34, 0.64), (x, height), (x + 0.34, 0.64)], (118, 132, 170), shadow=0.012)
        c.polygon(
            [(x - 0.11, height + 0.14), (x, height), (x + 0.11, height + 0.14), (x + 0.03, height + 0.1)],
            (252, 253, 255),
        )
    c.polygon(_hill(-0.1, 1.1, 0.62, rng, 0.02), (244, 248, 255), shadow=-0.015)
    for x, y in rng.uniform(0, 1, (14, 2)):
        c.ellipse(x, y, 0.013, 0.013, (255, 255, 255))


def _desert(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((255, 148, 70), (255, 222, 150))
    c.ellipse(rng.uniform(0.15, 0.85), 0.2, 0.11, 0.11, (252, 92, 48), shadow=0.012)
    c.polygon(_hill(-0.1, 1.1, 0.56, rng, 0.05), (222, 154, 84), shadow=-0.012)
    c.polygon(_hill(-0.1, 1.1, 0.7, rng, 0.035), (198, 122, 62), shadow=-0.015)
    x = 0.1 if rng.random() < 0.5 else 0.9
    green = (40, 122, 74)
    c.polygon(_oval(x, 0.56, 0.04, 0.24, 4), green, shadow=0.012)
    c.polygon(_box(x - 0.11, 0.5, x, 0.55), green)
    c.polygon(_oval(x - 0.1, 0.46, 0.024, 0.09, 4), green)
    c.polygon(_box(x, 0.58, x + 0.11, 0.63), green)
    c.polygon(_oval(x + 0.1, 0.54, 0.024, 0.09, 4), green)


def _library(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((92, 54, 36), (70, 40, 28))
    colors = ((170, 52, 48), (40, 92, 128), (220, 178, 92), (60, 112, 74), (112, 62, 112), (232, 222, 200))
    for shelf in (0.2, 0.47, 0.74, 1.01):
        x = 0.01
        while x < 0.99:
            width, height = rng.uniform(0.06, 0.085), rng.uniform(0.15, 0.2)
            c.polygon(_box(x, shelf - height, x + width, shelf), colors[int(rng.integers(len(colors)))])
            x += width + 0.008
        c.polygon(_box(-0.1, shelf, 1.1, shelf + 0.045), (156, 102, 62), shadow=0.02)


def _garden(c: _Canvas, rng: np.random.Generator) -> None:
    c.gradient((142, 214, 250), (204, 240, 236))
    for x, y in zip(rng.uniform(0, 1, 3), rng.uniform(0.08, 0.24, 3), strict=True):
        c.polygon(_oval(x, y, 0.11, 0.04, 3), (255, 255, 255))
    c.polygon(_hill(-0.1, 1.1, 0.5, rng, 0.03), (142, 208, 96), shadow=-0.012)
    c.polygon(_hill(-0.1, 1.1, 0.68, rng, 0.02), (98, 178, 70), shadow=-0.012)
    petals = ((238, 82, 126), (255, 255, 255), (250, 196, 56), (164, 92, 214))
    for x in np.linspace(0.03, 0.97, 9):
        y = rng.uniform(0.54, 0.92)
        color = petals[int(rng.integers(4))]
        c.ellipse(x, y, 0.05, 0.05, color, shadow=0.012)
        c.ellipse(x, y, 0.02, 0.02, (252, 222, 90) if color != petals[2] else (150, 84, 40))


def _studio(c: _Canvas, rng: np.random.Generator) -> None:
    # Plain pastel paper with a lighter spot: the only scene whose colour varies.
    backdrops = ((196, 168, 220), (232, 168, 168), (168, 208, 200), (224, 206, 160), (166, 184, 220))
    color = backdrops[int(rng.integers(len(backdrops)))]
    c.gradient(color, _mix(color, INK, 0.12))
    c.ellipse(0.5, 0.45, 0.46, 0.46, _mix(color, PAPER, 0.3))
    c.polygon(_box(-0.1, 0.88, 1.1, 1.1), _mix(color, INK, 0.3), shadow=-0.01)


_SCENES = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "snow": _snow,
    "desert": _desert,
    "library": _library,
    "garden": _garden,
    "studio": _studio,
}


# --------------------------------------------------------------------------------------------------------------- objects


def _roses(c: _Canvas) -> None:
    for x, y in ((-0.2, 0.9), (0.0, 0.78), (0.2, 0.9)):
        c.polygon([(x - 0.03, y), (x + 0.03, y), (0.04, 1.5), (-0.04, 1.5)], (40, 128, 66), "roses")
    c.polygon([(-0.02, 1.2), (-0.24, 1.1), (-0.1, 1.3)], (52, 150, 78))
    c.polygon([(0.02, 1.2), (0.24, 1.1), (0.1, 1.3)], (52, 150, 78))
    for x, y in ((-0.24, 0.92), (0.24, 0.92), (0.0, 0.8)):
        c.ellipse(x, y, 0.19, 0.18, (222, 26, 74), shadow=0.03)
        c.ellipse(x, y - 0.02, 0.1, 0.09, (250, 92, 124))


def _book(c: _Canvas) -> None:
    c.polygon(
        [(-0.48, 0.86), (0.0, 0.93), (0.48, 0.86), (0.48, 1.36), (0.0, 1.43), (-0.48, 1.36)],
        (36, 64, 140),
        "book",
        0.03,
    )
    c.polygon([(-0.43, 0.82), (-0.01, 0.9), (-0.01, 1.36), (-0.43, 1.29)], (255, 253, 244))
    c.polygon([(0.43, 0.82), (0.01, 0.9), (0.01, 1.36), (0.43, 1.29)], (240, 234, 218))
    for y in (0.97, 1.08, 1.19):
        c.polygon([(-0.37, y - 0.04), (-0.08, y + 0.01), (-0.08, y + 0.05), (-0.37, y)], (150, 148, 160))
        c.polygon([(0.37, y - 0.04), (0.08, y + 0.01), (0.08, y + 0.05), (0.37, y)], (150, 148, 160))


def _basketball(c: _Canvas) -> None:
    c.ellipse(0, 1.1, 0.38, 0.38, (242, 122, 30), "basketball", 0.03)
    c.polygon(_box(-0.025, 0.73, 0.025, 1.47), (60, 34, 20))
    c.polygon(_box(-0.37, 1.075, 0.37, 1.125), (60, 34, 20))
    for side in (-1, 1):
        outer = _oval(side * 0.42, 1.1, 0.27, 0.36, start=0.0)
        outline = _oval(0, 1.1, 0.38, 0.38)
        inner = _oval(side * 0.42, 1.1, 0.22, 0.31)
        c.inside(outline, [outer], (60, 34, 20))
        c.inside(outline, [inner], (242, 122, 30))


def _cat(c: _Canvas) -> None:
    fur, dark = (250, 250, 252), (70, 66, 78)
    c.ellipse(0, 1.28, 0.33, 0.3, fur, "cat", 0.03)
    for side in (-1, 1):
        c.polygon([(side * 0.28, 0.68), (side * 0.3, 1.0), (side * 0.06, 0.86)], dark, shadow=0.02)
    c.ellipse(0, 1.0, 0.3, 0.25, fur, shadow=0.025)
    c.polygon([(-0.3, 0.98), (-0.2, 0.82), (-0.02, 0.78), (-0.06, 1.0)], dark)
    for side in (-1, 1):
        c.ellipse(side * 0.12, 1.0, 0.055, 0.065, (70, 180, 60) if side > 0 else (250, 210, 60))
        c.ellipse(side * 0.12, 1.0, 0.02, 0.05, INK)
    c.polygon([(-0.04, 1.08), (0.04, 1.08), (0, 1.13)], (240, 120, 150))


_OBJECTS = {"roses": _roses, "book": _book, "basketball": _basketball, "cat": _cat}


# ---------------------------------------------------------------------------------------------------------------- people


def _torso(person: Person) -> Points:
    wide = 0.86 if person.identity.word == "man" else 0.68
    return [
        (-0.2, 0.46),
        (-wide * 0.62, 0.56),
        (-wide, 0.74),
        (-wide - 0.06, 1.1),
        (-wide - 0.04, 2.6),
        (wide + 0.04, 2.6),
        (wide + 0.06, 1.1),
        (wide, 0.74),
        (wide * 0.62, 0.56),
        (0.2, 0.46),
    ]


def _shirt(c: _Canvas, person: Person) -> None:
    who = person.identity
    color = CLOTH[who.shirt_color]
    accent = INK if who.shirt_color in ("white", "yellow") else PAPER
    outline = _torso(person)
    c.polygon(outline, color, "shirt", 0.04)
    marks: list[Points] = []
    if who.shirt_pattern == "striped":
        marks = [_box(-1.2, y, 1.2, y + 0.18) for y in np.arange(0.68, 2.6, 0.4)]
    elif who.shirt_pattern == "dotted":
        marks = [
            _oval(x + 0.2 * (row % 2), y, 0.1, 0.1)
            for row, y in enumerate(np.arange(0.72, 2.2, 0.32))
            for x in np.arange(-1.2, 1.3, 0.4)
        ]
    elif who.shirt_pattern == "zigzag":
        for y in np.arange(0.7, 2.6, 0.5):
            top = [(x, y + (0.2 if i % 2 else 0.0)) for i, x in enumerate(np.arange(-1.2, 1.21, 0.3))]
            marks.append([*top, *((x, py + 0.18) for x, py in reversed(top))])
    if marks:
        c.inside(outline, marks, accent)


def _face_outline(person: Person) -> Points:
    rx, ry, power = {"round": (0.46, 0.47, 2.0), "oval": (0.37, 0.5, 2.1), "square": (0.42, 0.47, 3.6)}[
        person.identity.face
    ]
    return _oval(0, 0, rx, ry, power)


def _back_hair(c: _Canvas, person: Person) -> None:
    who = person.identity
    dark = _mix(HAIR_COLORS[who.hair_color], INK, 0.22)
    match who.hair_style:
        case "long":
            c.polygon(
                [(-0.5, -0.3), (-0.62, 0.4), (-0.6, 1.02), (0.6, 1.02), (0.62, 0.4), (0.5, -0.3), (0, -0.6)],
                dark,
                "hair",
                0.04,
            )
        case "bob":
            c.polygon(_oval(0, 0.06, 0.62, 0.56, 3.2), dark, "hair", 0.04)
        case "bun":
            c.ellipse(0, -0.62, 0.24, 0.22, dark, "hair", 0.03)
            c.ellipse(0, -0.08, 0.51, 0.5, dark)
        case "pigtails":
            for side in (-1, 1):
                c.ellipse(side * 0.66, 0.28, 0.2, 0.4, dark, "hair", 0.04)
            c.ellipse(0, -0.08, 0.51, 0.5, dark)
        case "curly":
            for angle in np.linspace(0.48, 1.02, 8):
                a = 2 * math.pi * angle
                c.ellipse(0.47 * math.cos(a), 0.44 * math.sin(a) - 0.06, 0.17, 0.17, dark, "hair", 0.02)


def _front_hair(c: _Canvas, person: Person) -> None:
    who = person.identity
    color = HAIR_COLORS[who.hair_color]
    match who.hair_style:
        case "bald":
            return
        case "short":
            c.polygon([*_oval(0, -0.1, 0.47, 0.44, 2.4, 0.5, 1.0), (0.38, -0.22), (-0.38, -0.22)], color, "hair", 0.03)
        case "curly":
            for x in np.linspace(-0.34, 0.34, 5):
                c.ellipse(x, -0.42 + 0.3 * x * x, 0.15, 0.14, color, "hair", 0.02)
        case "mohawk":
            c.polygon(
                [
                    (-0.13, -0.28),
                    (-0.19, -0.78),
                    (-0.06, -0.68),
                    (0, -0.86),
                    (0.06, -0.68),
                    (0.19, -0.78),
                    (0.13, -0.28),
                ],
                color,
                "hair",
                0.03,
            )
        case "bun" | "pigtails":
            c.polygon(
                [*_oval(0, -0.08, 0.49, 0.46, 2.2, 0.5, 1.0), (0.3, -0.2), (0, -0.3), (-0.3, -0.2)], color, "hair", 0.03
            )
        case "long":
            c.polygon(
                [*_oval(0, -0.08, 0.53, 0.48, 2.2, 0.47, 1.03), (0.36, -0.16), (0.06, -0.36), (-0.36, -0.1)],
                color,
                "hair",
                0.03,
            )
            for side in (-1, 1):
                c.polygon(
                    [(side * 0.53, -0.1), (side * 0.38, -0.2), (side * 0.42, 0.86), (side * 0.6, 0.9)],
                    color,
                    shadow=0.02,
                )
        case "bob":
            c.polygon([*_oval(0, -0.06, 0.54, 0.5, 2.4, 0.5, 1.0), (0.42, -0.18), (-0.42, -0.18)], color, "hair", 0.03)
            for side in (-1, 1):
                c.polygon([(side * 0.55, -0.12), (side * 0.38, -0.2), (side * 0.4, 0.44), (side * 0.6, 0.46)], color)


def _hat(c: _Canvas, person: Person) -> None:
    who = person.identity
    if who.hat == "no":
        return
    color = CLOTH[who.hat_color]
    band = _mix(color, INK, 0.45)
    match who.hat:
        case "top":
            c.polygon([(-0.36, -0.3), (-0.4, -0.92), (0.4, -0.92), (0.36, -0.3)], color, "hat", 0.03)
            c.polygon(_box(-0.37, -0.48, 0.37, -0.36), band)
            c.polygon(_box(-0.62, -0.38, 0.62, -0.26), color, shadow=0.03)
        case "beanie":
            c.polygon([*_oval(0, -0.24, 0.5, 0.5, 2.4, 0.5, 1.0)], color, "hat", 0.03)
            c.polygon(_box(-0.53, -0.34, 0.53, -0.18), band, shadow=0.02)
            c.ellipse(0, -0.78, 0.13, 0.13, PAPER, shadow=0.02)
        case "cap":
            side = 1 if person.turn >= 0 else -1
            c.polygon([*_oval(0, -0.24, 0.49, 0.4, 2.2, 0.5, 1.0)], color, "hat", 0.03)
            c.polygon(_oval(side * 0.38, -0.24, 0.46, 0.075, 3), band, shadow=0.03)
        case "sun":
            c.polygon(_oval(0, -0.3, 0.82, 0.15, 2.2), color, "hat", 0.04)
            c.polygon([*_oval(0, -0.32, 0.4, 0.42, 2.4, 0.5, 1.0)], color, shadow=0.0)
            c.polygon(_box(-0.4, -0.42, 0.4, -0.32), band)


def _face(c: _Canvas, person: Person) -> None:
    who = person.identity
    dx, skin = 0.07 * person.turn, SKINS[who.skin]
    if who.cheeks == "rosy":
        for side in (-1, 1):
            c.ellipse(dx + side * 0.26, 0.15, 0.09, 0.065, _mix(skin, (238, 70, 90), 0.5), "skin")
    elif who.cheeks == "freckled":
        for fx, fy in ((-0.3, 0.1), (-0.2, 0.15), (0.2, 0.15), (0.3, 0.1)):
            c.ellipse(dx + fx, fy, 0.028, 0.028, _mix(skin, (120, 50, 20), 0.55), "skin")
    hair = _mix(HAIR_COLORS[who.hair_color], INK, 0.1)
    match who.beard:
        case "full beard":
            c.polygon(
                [
                    (-0.4, 0.06),
                    (-0.36, 0.36),
                    (-0.16, 0.58),
                    (0.16, 0.58),
                    (0.36, 0.36),
                    (0.4, 0.06),
                    (0.2, 0.18),
                    (-0.2, 0.18),
                ],
                hair,
                "beard",
                0.02,
            )
        case "goatee":
            c.polygon(_oval(dx, 0.4, 0.15, 0.17), hair, "beard", 0.02)
        case "moustache":
            c.polygon(
                [(dx - 0.25, 0.25), (dx, 0.13), (dx + 0.25, 0.25), (dx + 0.12, 0.25), (dx, 0.22), (dx - 0.12, 0.25)],
                hair,
                "beard",
                0.02,
            )
    lips = LIPS[who.lips] if who.lips else _mix(skin, (150, 40, 40), 0.6)
    smile = 0.03 + 0.07 * person.smile
    wide = 0.17 if who.word == "man" else 0.14
    c.polygon(
        [
            (dx - wide, 0.26),
            (dx, 0.28),
            (dx + wide, 0.26),
            (dx + wide * 0.6, 0.28 + smile),
            (dx, 0.31 + smile),
            (dx - wide * 0.6, 0.28 + smile),
        ],
        lips,
        "mouth",
    )
    c.polygon([(dx - 0.03, 0.0), (dx + 0.035, 0.0), (dx + 0.06, 0.15), (dx - 0.05, 0.15)], _mix(skin, INK, 0.2), "skin")
    for side in (-1, 1):
        x = dx + side * 0.19
        c.ellipse(x, -0.03, 0.11, 0.085, (255, 255, 255), "eye")
        c.ellipse(x + 0.03 * person.turn, -0.03, 0.065, 0.075, EYES[who.eyes])
        c.ellipse(x + 0.03 * person.turn, -0.03, 0.028, 0.032, INK)
        if who.word == "woman":
            c.polygon([(x - 0.12, -0.06), (x, -0.14), (x + 0.12, -0.06), (x, -0.1)], INK)
        thick = 0.05 if who.brows == "thick" else 0.025
        c.polygon(
            [(x - 0.13, -0.17), (x, -0.2 - thick), (x + 0.13, -0.17), (x, -0.2 + thick * 0.4)],
            _mix(hair, INK, 0.4),
            "hair",
        )
    if who.glasses != "no":
        _glasses(c, who.glasses, dx)


def _glasses(c: _Canvas, kind: str, dx: float) -> None:
    frame = (24, 22, 30)
    c.polygon(_box(dx - 0.46, -0.07, dx + 0.46, -0.025), frame, "glasses")
    for side in (-1, 1):
        x = dx + side * 0.2
        if kind == "sun":
            c.polygon(_oval(x, -0.02, 0.18, 0.14, 3), frame, "glasses", 0.02)
            c.polygon(_box(x - 0.1, -0.1, x + 0.02, -0.06), (120, 130, 160))
            continue
        power, color = (2.0, (200, 60, 40)) if kind == "round" else (8.0, frame)
        ring, hole = _oval(x, -0.03, 0.18, 0.165, power), _oval(x, -0.03, 0.13, 0.115, power)
        c.inside(ring, [_ring(ring, hole)], color)


def _ring(outer: Points, inner: Points) -> Points:
    """A closed band between two outlines, as one polygon that walks out and back."""
    return [*outer, outer[0], inner[0], *reversed(inner), inner[0], outer[0]]


def _person(c: _Canvas, person: Person, instance: int) -> None:
    who = person.identity
    skin = SKINS[who.skin]
    c.frame(person.x, person.y, person.unit)
    c.instance = instance
    _back_hair(c, person)
    _shirt(c, person)
    neck = 0.2 if who.word == "man" else 0.14
    c.polygon(
        [(-neck, 0.3), (neck, 0.3), (neck + 0.02, 0.54), (0, 0.66), (-neck - 0.02, 0.54)], _mix(skin, INK, 0.14), "skin"
    )
    for side in (-1, 1):
        c.ellipse(side * 0.43, 0.02, 0.08, 0.12, _mix(skin, INK, 0.1), "skin")
        if who.earrings:
            c.ellipse(side * 0.45, 0.2, 0.065, 0.065, (252, 200, 40), "earring", 0.01)
    c.polygon(_face_outline(person), skin, "skin", 0.03)
    _face(c, person)
    _front_hair(c, person)
    _hat(c, person)
    if person.held:
        # What is held is not the person: it belongs to the scene that the prior draws.
        c.instance = 0
        c.frame(person.x, person.y - 0.12 * person.unit, person.unit * 1.18)
        _OBJECTS[person.held](c)
        c.instance = instance
        for side in (-1, 1):
            c.ellipse(side * 0.4, 1.3, 0.12, 0.11, skin, "hand", 0.025)


def _landmarks(person: Person) -> Points:
    """The 68 points of the usual face annotation (iBUG order), in head units."""
    dx = 0.07 * person.turn
    face = _oval(0, 0, 0.42, 0.48, 2.2, 0.0, 0.5)
    jaw = [face[round(i * (len(face) - 1) / 16)] for i in reversed(range(17))]
    brows = [(dx + side * 0.19 + o, -0.19) for side in (-1, 1) for o in (-0.13, -0.06, 0.0, 0.06, 0.13)]
    nose = [(dx, 0.0), (dx, 0.05), (dx, 0.1), (dx, 0.15), *((dx + o, 0.16) for o in (-0.06, -0.03, 0.0, 0.03, 0.06))]
    eyes = [
        (dx + side * 0.19 + o, -0.03 + e)
        for side in (-1, 1)
        for o, e in ((-0.1, 0.0), (-0.04, -0.06), (0.04, -0.06), (0.1, 0.0), (0.04, 0.06), (-0.04, 0.06))
    ]
    outer = [
        (dx + 0.16 * math.cos(math.pi + a), 0.29 + 0.05 * math.sin(math.pi + a))
        for a in np.linspace(0, 2 * math.pi, 13)[:12]
    ]
    inner = [
        (dx + 0.1 * math.cos(math.pi + a), 0.29 + 0.02 * math.sin(math.pi + a))
        for a in np.linspace(0, 2 * math.pi, 9)[:8]
    ]
    return [*jaw, *brows, *nose, *eyes, *outer, *inner]


def draw(picture: Picture, pixels: int = 64, parts: bool = False) -> Drawing:
    """Draw a picture at `pixels` × `pixels`, with its instance map and landmarks (and, if asked, its map of parts)."""
    c = _Canvas(pixels * SUPERSAMPLING, parts)
    if c.part_pen:
        c.part = _PART_INDEX[picture.scene]
        c.part_pen.rectangle((0, 0, c.side, c.side), fill=c.part)
    _SCENES[picture.scene](c, np.random.default_rng(picture.variation))
    landmarks = []
    for instance, person in enumerate(picture.people, start=1):
        _person(c, person, instance)
        landmarks.append([(x / SUPERSAMPLING, y / SUPERSAMPLING) for x, y in c.at(_landmarks(person))])
    large = np.asarray(c.instances)
    instances = np.zeros((pixels, pixels), np.uint8)
    for instance in range(1, len(picture.people) + 1):
        cover = (large == instance).reshape(pixels, SUPERSAMPLING, pixels, SUPERSAMPLING).mean((1, 3))
        instances[cover >= 0.5] = instance
    return Drawing(c.image.reduce(SUPERSAMPLING), instances, np.asarray(c.parts) if c.parts else None, landmarks)
