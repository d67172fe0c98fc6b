"""Paperfolk's people, from the back of the hair to the hands.

Lengths are in units of the head's height, with the head's centre at (0, 0), x to the right and y down.
"""

import math

import numpy as np

from preprocessing.sources.paperfolk_canvas import INK, PAPER, Canvas, Points, box, mix, oval
from preprocessing.sources.paperfolk_scenes import HELD
from preprocessing.sources.paperfolk_world import CLOTH, EYES, HAIR_COLORS, LIPS, SKINS, Person


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


def _shirt(c: Canvas, person: Person) -> None:
    who = person.identity
    color = CLOTH[who.shirt_color]
    accent = INK if who.shirt_color in ("white", "yellow") else PAPER
    outline = _torso(person)
    c.polygon(outline, color, "shirt", 0.04)
    marks: list[Points] = []
    if who.shirt_pattern == "striped":
        marks = [box(-1.2, y, 1.2, y + 0.18) for y in np.arange(0.68, 2.6, 0.4)]
    elif who.shirt_pattern == "dotted":
        marks = [
            oval(x + 0.2 * (row % 2), y, 0.1, 0.1)
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
    return oval(0, 0, rx, ry, power)


def _back_hair(c: Canvas, person: Person) -> None:
    who = person.identity
    dark = mix(HAIR_COLORS[who.hair_color], INK, 0.22)
    match who.hair_style:
        case "long":
            c.polygon(
                [(-0.5, -0.3), (-0.62, 0.4), (-0.6, 1.02), (0.6, 1.02), (0.62, 0.4), (0.5, -0.3), (0, -0.6)],
                dark,
                "hair",
                0.04,
            )
        case "bob":
            c.polygon(oval(0, 0.06, 0.62, 0.56, 3.2), dark, "hair", 0.04)
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


def _front_hair(c: Canvas, person: Person) -> None:
    who = person.identity
    color = HAIR_COLORS[who.hair_color]
    match who.hair_style:
        case "bald":
            return
        case "short":
            c.polygon([*oval(0, -0.1, 0.47, 0.44, 2.4, 0.5, 1.0), (0.38, -0.22), (-0.38, -0.22)], color, "hair", 0.03)
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
                [*oval(0, -0.08, 0.49, 0.46, 2.2, 0.5, 1.0), (0.3, -0.2), (0, -0.3), (-0.3, -0.2)], color, "hair", 0.03
            )
        case "long":
            c.polygon(
                [*oval(0, -0.08, 0.53, 0.48, 2.2, 0.47, 1.03), (0.36, -0.16), (0.06, -0.36), (-0.36, -0.1)],
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
            c.polygon([*oval(0, -0.06, 0.54, 0.5, 2.4, 0.5, 1.0), (0.42, -0.18), (-0.42, -0.18)], color, "hair", 0.03)
            for side in (-1, 1):
                c.polygon([(side * 0.55, -0.12), (side * 0.38, -0.2), (side * 0.4, 0.44), (side * 0.6, 0.46)], color)


def _hat(c: Canvas, person: Person) -> None:
    who = person.identity
    if who.hat == "no":
        return
    color = CLOTH[who.hat_color]
    band = mix(color, INK, 0.45)
    match who.hat:
        case "top":
            c.polygon([(-0.36, -0.3), (-0.4, -0.92), (0.4, -0.92), (0.36, -0.3)], color, "hat", 0.03)
            c.polygon(box(-0.37, -0.48, 0.37, -0.36), band)
            c.polygon(box(-0.62, -0.38, 0.62, -0.26), color, shadow=0.03)
        case "beanie":
            c.polygon([*oval(0, -0.24, 0.5, 0.5, 2.4, 0.5, 1.0)], color, "hat", 0.03)
            c.polygon(box(-0.53, -0.34, 0.53, -0.18), band, shadow=0.02)
            c.ellipse(0, -0.78, 0.13, 0.13, PAPER, shadow=0.02)
        case "cap":
            side = 1 if person.turn >= 0 else -1
            c.polygon([*oval(0, -0.24, 0.49, 0.4, 2.2, 0.5, 1.0)], color, "hat", 0.03)
            c.polygon(oval(side * 0.38, -0.24, 0.46, 0.075, 3), band, shadow=0.03)
        case "sun":
            c.polygon(oval(0, -0.3, 0.82, 0.15, 2.2), color, "hat", 0.04)
            c.polygon([*oval(0, -0.32, 0.4, 0.42, 2.4, 0.5, 1.0)], color, shadow=0.0)
            c.polygon(box(-0.4, -0.42, 0.4, -0.32), band)


def _face(c: Canvas, person: Person) -> None:
    who = person.identity
    dx, skin = 0.07 * person.turn, SKINS[who.skin]
    if who.cheeks == "rosy":
        for side in (-1, 1):
            c.ellipse(dx + side * 0.26, 0.15, 0.09, 0.065, mix(skin, (238, 70, 90), 0.5), "skin")
    elif who.cheeks == "freckled":
        for fx, fy in ((-0.3, 0.1), (-0.2, 0.15), (0.2, 0.15), (0.3, 0.1)):
            c.ellipse(dx + fx, fy, 0.028, 0.028, mix(skin, (120, 50, 20), 0.55), "skin")
    hair = mix(HAIR_COLORS[who.hair_color], INK, 0.1)
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
            c.polygon(oval(dx, 0.4, 0.15, 0.17), hair, "beard", 0.02)
        case "moustache":
            c.polygon(
                [(dx - 0.25, 0.25), (dx, 0.13), (dx + 0.25, 0.25), (dx + 0.12, 0.25), (dx, 0.22), (dx - 0.12, 0.25)],
                hair,
                "beard",
                0.02,
            )
    lips = LIPS[who.lips] if who.lips else mix(skin, (150, 40, 40), 0.6)
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
    c.polygon([(dx - 0.03, 0.0), (dx + 0.035, 0.0), (dx + 0.06, 0.15), (dx - 0.05, 0.15)], mix(skin, INK, 0.2), "skin")
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
            mix(hair, INK, 0.4),
            "hair",
        )
    if who.glasses != "no":
        _glasses(c, who.glasses, dx)


def _glasses(c: Canvas, kind: str, dx: float) -> None:
    frame = (24, 22, 30)
    c.polygon(box(dx - 0.46, -0.07, dx + 0.46, -0.025), frame, "glasses")
    for side in (-1, 1):
        x = dx + side * 0.2
        if kind == "sun":
            c.polygon(oval(x, -0.02, 0.18, 0.14, 3), frame, "glasses", 0.02)
            c.polygon(box(x - 0.1, -0.1, x + 0.02, -0.06), (120, 130, 160))
            continue
        power, color = (2.0, (200, 60, 40)) if kind == "round" else (8.0, frame)
        ring, hole = oval(x, -0.03, 0.18, 0.165, power), oval(x, -0.03, 0.13, 0.115, power)
        c.inside(ring, [_ring(ring, hole)], color)


def _ring(outer: Points, inner: Points) -> Points:
    """A closed band between two outlines, as one polygon that walks out and back."""
    return [*outer, outer[0], inner[0], *reversed(inner), inner[0], outer[0]]


def draw_person(c: Canvas, person: Person, instance: int) -> None:
    who = person.identity
    skin = SKINS[who.skin]
    c.frame(person.x, person.y, person.unit)
    c.instance = instance
    _back_hair(c, person)
    _shirt(c, person)
    neck = 0.2 if who.word == "man" else 0.14
    c.polygon(
        [(-neck, 0.3), (neck, 0.3), (neck + 0.02, 0.54), (0, 0.66), (-neck - 0.02, 0.54)], mix(skin, INK, 0.14), "skin"
    )
    for side in (-1, 1):
        c.ellipse(side * 0.43, 0.02, 0.08, 0.12, mix(skin, INK, 0.1), "skin")
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
        HELD[person.held](c)
        c.instance = instance
        for side in (-1, 1):
            c.ellipse(side * 0.4, 1.3, 0.12, 0.11, skin, "hand", 0.025)
        c.frame(person.x, person.y, person.unit)  # the face's again: landmarks are laid out in it


def landmarks_of(person: Person) -> Points:
    """The 68 points of the usual face annotation (iBUG order), in head units."""
    dx = 0.07 * person.turn
    face = oval(0, 0, 0.42, 0.48, 2.2, 0.0, 0.5)
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
