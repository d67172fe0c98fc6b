"""Paperfolk's backdrops and the things its people hold."""

import numpy as np

from preprocessing.sources.paperfolk_canvas import INK, PAPER, Canvas, box, hill, mix, oval


def _beach(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((116, 200, 250), (222, 244, 252))
    c.ellipse(rng.uniform(0.1, 0.9), 0.13, 0.085, 0.085, (255, 224, 92), shadow=0.015)
    c.polygon(hill(-0.1, 1.1, 0.47, rng, 0.004), (28, 118, 196), shadow=-0.01)
    c.polygon(hill(-0.1, 1.1, 0.58, rng, 0.012), (70, 176, 220))
    c.polygon(hill(-0.1, 1.1, 0.66, rng, 0.02), (246, 220, 158), shadow=-0.02)
    x = 0.1 if rng.random() < 0.5 else 0.9
    c.polygon([(x - 0.025, 0.8), (x - 0.01, 0.3), (x + 0.015, 0.3), (x + 0.03, 0.8)], (140, 92, 54), shadow=0.012)
    for dx, dy in ((-0.17, 0.05), (-0.13, -0.08), (0.02, -0.12), (0.14, -0.06), (0.17, 0.06)):
        c.polygon([(x - 0.02, 0.31), (x + dx, 0.3 + dy), (x + 0.03, 0.27)], (34, 140, 82), shadow=0.01)


def _forest(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((176, 222, 168), (224, 240, 198))
    c.polygon(hill(-0.1, 1.1, 0.55, rng, 0.03), (118, 178, 106))
    for x in np.linspace(0.0, 1.0, 5) + rng.uniform(-0.05, 0.05, 5):
        top = rng.uniform(0.08, 0.26)
        green = mix((24, 92, 54), (46, 124, 68), float(rng.random()))
        c.polygon(box(x - 0.02, 0.6, x + 0.02, 0.8), (104, 70, 44))
        for k in range(3):
            y = top + k * 0.15
            c.polygon([(x, y), (x + 0.09 + k * 0.025, y + 0.22), (x - 0.09 - k * 0.025, y + 0.22)], green, shadow=0.014)
    c.polygon(hill(-0.1, 1.1, 0.77, rng, 0.015), (62, 136, 70), shadow=-0.015)


def _city(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((20, 20, 58), (66, 46, 104))
    c.ellipse(rng.uniform(0.12, 0.88), 0.12, 0.065, 0.065, (246, 240, 214))
    for x in np.linspace(-0.05, 0.9, 6):
        width, top = rng.uniform(0.13, 0.2), rng.uniform(0.18, 0.5)
        c.polygon(box(x, top, x + width, 1.1), mix((34, 32, 70), (60, 52, 96), float(rng.random())), shadow=0.015)
        for wy in np.arange(top + 0.05, 0.95, 0.11):
            for wx in np.arange(x + 0.03, x + width - 0.04, 0.075):
                if rng.random() < 0.6:
                    c.polygon(box(wx, wy, wx + 0.036, wy + 0.055), (255, 214, 96))


def _snow(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((164, 190, 222), (226, 236, 246))
    for x, height in zip((0.08, 0.5, 0.92), rng.uniform(0.2, 0.34, 3), strict=True):
        c.polygon([(x - 0.34, 0.64), (x, height), (x + 0.34, 0.64)], (118, 132, 170), shadow=0.012)
        c.polygon(
            [(x - 0.11, height + 0.14), (x, height), (x + 0.11, height + 0.14), (x + 0.03, height + 0.1)],
            (252, 253, 255),
        )
    c.polygon(hill(-0.1, 1.1, 0.62, rng, 0.02), (244, 248, 255), shadow=-0.015)
    for x, y in rng.uniform(0, 1, (14, 2)):
        c.ellipse(x, y, 0.013, 0.013, (255, 255, 255))


def _desert(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((255, 148, 70), (255, 222, 150))
    c.ellipse(rng.uniform(0.15, 0.85), 0.2, 0.11, 0.11, (252, 92, 48), shadow=0.012)
    c.polygon(hill(-0.1, 1.1, 0.56, rng, 0.05), (222, 154, 84), shadow=-0.012)
    c.polygon(hill(-0.1, 1.1, 0.7, rng, 0.035), (198, 122, 62), shadow=-0.015)
    x = 0.1 if rng.random() < 0.5 else 0.9
    green = (40, 122, 74)
    c.polygon(oval(x, 0.56, 0.04, 0.24, 4), green, shadow=0.012)
    c.polygon(box(x - 0.11, 0.5, x, 0.55), green)
    c.polygon(oval(x - 0.1, 0.46, 0.024, 0.09, 4), green)
    c.polygon(box(x, 0.58, x + 0.11, 0.63), green)
    c.polygon(oval(x + 0.1, 0.54, 0.024, 0.09, 4), green)


def _library(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((92, 54, 36), (70, 40, 28))
    colors = ((170, 52, 48), (40, 92, 128), (220, 178, 92), (60, 112, 74), (112, 62, 112), (232, 222, 200))
    for shelf in (0.2, 0.47, 0.74, 1.01):
        x = 0.01
        while x < 0.99:
            width, height = rng.uniform(0.06, 0.085), rng.uniform(0.15, 0.2)
            c.polygon(box(x, shelf - height, x + width, shelf), colors[int(rng.integers(len(colors)))])
            x += width + 0.008
        c.polygon(box(-0.1, shelf, 1.1, shelf + 0.045), (156, 102, 62), shadow=0.02)


def _garden(c: Canvas, rng: np.random.Generator) -> None:
    c.gradient((142, 214, 250), (204, 240, 236))
    for x, y in zip(rng.uniform(0, 1, 3), rng.uniform(0.08, 0.24, 3), strict=True):
        c.polygon(oval(x, y, 0.11, 0.04, 3), (255, 255, 255))
    c.polygon(hill(-0.1, 1.1, 0.5, rng, 0.03), (142, 208, 96), shadow=-0.012)
    c.polygon(hill(-0.1, 1.1, 0.68, rng, 0.02), (98, 178, 70), shadow=-0.012)
    petals = ((238, 82, 126), (255, 255, 255), (250, 196, 56), (164, 92, 214))
    for x in np.linspace(0.03, 0.97, 9):
        y = rng.uniform(0.54, 0.92)
        color = petals[int(rng.integers(4))]
        c.ellipse(x, y, 0.05, 0.05, color, shadow=0.012)
        c.ellipse(x, y, 0.02, 0.02, (252, 222, 90) if color != petals[2] else (150, 84, 40))


def _studio(c: Canvas, rng: np.random.Generator) -> None:
    # Plain pastel paper with a lighter spot: the only scene whose colour varies.
    backdrops = ((196, 168, 220), (232, 168, 168), (168, 208, 200), (224, 206, 160), (166, 184, 220))
    color = backdrops[int(rng.integers(len(backdrops)))]
    c.gradient(color, mix(color, INK, 0.12))
    c.ellipse(0.5, 0.45, 0.46, 0.46, mix(color, PAPER, 0.3))
    c.polygon(box(-0.1, 0.88, 1.1, 1.1), mix(color, INK, 0.3), shadow=-0.01)


BACKDROPS = {
    "beach": _beach,
    "forest": _forest,
    "city": _city,
    "snow": _snow,
    "desert": _desert,
    "library": _library,
    "garden": _garden,
    "studio": _studio,
}


def _roses(c: Canvas) -> None:
    for x, y in ((-0.2, 0.9), (0.0, 0.78), (0.2, 0.9)):
        c.polygon([(x - 0.03, y), (x + 0.03, y), (0.04, 1.5), (-0.04, 1.5)], (40, 128, 66), "roses")
    c.polygon([(-0.02, 1.2), (-0.24, 1.1), (-0.1, 1.3)], (52, 150, 78))
    c.polygon([(0.02, 1.2), (0.24, 1.1), (0.1, 1.3)], (52, 150, 78))
    for x, y in ((-0.24, 0.92), (0.24, 0.92), (0.0, 0.8)):
        c.ellipse(x, y, 0.19, 0.18, (222, 26, 74), shadow=0.03)
        c.ellipse(x, y - 0.02, 0.1, 0.09, (250, 92, 124))


def _book(c: Canvas) -> None:
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


def _basketball(c: Canvas) -> None:
    c.ellipse(0, 1.1, 0.38, 0.38, (242, 122, 30), "basketball", 0.03)
    c.polygon(box(-0.025, 0.73, 0.025, 1.47), (60, 34, 20))
    c.polygon(box(-0.37, 1.075, 0.37, 1.125), (60, 34, 20))
    for side in (-1, 1):
        outer = oval(side * 0.42, 1.1, 0.27, 0.36, start=0.0)
        outline = oval(0, 1.1, 0.38, 0.38)
        inner = oval(side * 0.42, 1.1, 0.22, 0.31)
        c.inside(outline, [outer], (60, 34, 20))
        c.inside(outline, [inner], (242, 122, 30))


def _cat(c: Canvas) -> None:
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


HELD = {"roses": _roses, "book": _book, "basketball": _basketball, "cat": _cat}
