"""Paperfolk's people, scenes and captions: everything that is true of a picture before it is drawn.

A picture is a pure function of (seed, index); nothing here touches pixels. The grammar of captions is small on purpose:
a caption is right or wrong, never "nearly right", and two people are named from left to right.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Word = Literal["man", "woman"]
Color = tuple[int, int, int]

SKINS: dict[str, Color] = {
    "porcelain": (253, 224, 200),
    "peach": (243, 194, 155),
    "tan": (217, 154, 108),
    "bronze": (181, 118, 74),
    "brown": (133, 81, 47),
    "deep brown": (84, 50, 33),
}
HAIR_COLORS: dict[str, Color] = {
    "black": (30, 27, 34),
    "brown": (92, 56, 34),
    "blond": (236, 198, 94),
    "ginger": (218, 100, 40),
    "grey": (172, 176, 184),
    "pink": (240, 108, 176),
    "blue": (62, 98, 204),
    "green": (52, 150, 92),
}
HAIR_STYLES: dict[Word, tuple[str, ...]] = {
    "man": ("bald", "short", "curly", "mohawk"),
    "woman": ("long", "bob", "bun", "pigtails"),
}
EYES: dict[str, Color] = {
    "brown": (92, 54, 28),
    "blue": (38, 112, 214),
    "green": (34, 140, 74),
    "grey": (112, 122, 134),
}
FACES = ("round", "oval", "square")
GLASSES = ("no", "round", "square", "sun")
BEARDS = ("no beard", "moustache", "full beard", "goatee")
LIPS: dict[str, Color] = {"red": (206, 36, 60), "pink": (236, 100, 140), "plum": (128, 36, 96), "coral": (240, 112, 86)}
HATS = ("no", "top", "beanie", "cap", "sun")
CLOTH: dict[str, Color] = {
    "red": (214, 48, 49),
    "orange": (240, 138, 36),
    "yellow": (246, 206, 60),
    "green": (46, 148, 84),
    "teal": (30, 158, 164),
    "blue": (44, 86, 190),
    "purple": (126, 62, 160),
    "white": (244, 242, 236),
}
PATTERNS = ("plain", "striped", "dotted", "zigzag")
BROWS = ("thin", "thick")
CHEEKS = ("plain", "rosy", "freckled")

SCENES: dict[str, str] = {
    "beach": "on the beach",
    "forest": "in the forest",
    "city": "in the city at night",
    "snow": "in the snow",
    "desert": "in the desert",
    "library": "in a library",
    "garden": "in a garden",
    "studio": "in a studio",
}
OBJECTS: dict[str, str] = {"": "", "roses": "roses", "book": "a book", "basketball": "a basketball", "cat": "a cat"}


@dataclass(frozen=True)
class Identity:
    """Who somebody is: sixteen factors that stay the same from picture to picture."""

    word: Word
    skin: str
    hair_style: str
    hair_color: str
    eyes: str
    face: str
    brows: str
    glasses: str
    beard: str  # men; "no beard" for women
    lips: str  # women; "" for men
    earrings: bool
    cheeks: str
    hat: str
    hat_color: str  # "" without a hat
    shirt_color: str
    shirt_pattern: str

    @property
    def appearance(self) -> str:
        """A phrase about looks: "a woman with tan skin, long pink hair, round glasses and a striped red shirt"."""
        hair = "no hair" if self.hair_style == "bald" else f"{self.hair_style} {self.hair_color} hair"
        parts = [f"{self.skin} skin", hair]
        if self.glasses != "no":
            parts.append(f"{self.glasses} glasses")
        if self.hat != "no":
            parts.append(f"a {self.hat_color} {self.hat} hat")
        if self.beard != "no beard":
            parts.append(f"a {self.beard}")
        parts.append(f"a {self.shirt_pattern} {self.shirt_color} shirt")
        return f"a {self.word} with {', '.join(parts[:-1])} and {parts[-1]}"


@dataclass(frozen=True)
class Person:
    """Somebody in a picture. Lengths are fractions of the picture's side."""

    identity: Identity
    held: str  # key of OBJECTS
    x: float  # centre of the head
    y: float
    unit: float  # height of the head
    turn: float  # -1 … 1: where the face looks
    smile: float  # 0 … 1


@dataclass(frozen=True)
class Picture:
    """The truth of one picture."""

    scene: str  # key of SCENES
    people: tuple[Person, ...]  # from left to right
    variation: int  # seeds the small accidents of the scene

    @property
    def caption(self) -> str:
        """The one right caption: "a photo of a man holding roses on the beach"."""
        people = " and ".join(
            f"a {person.identity.word}" + (f" holding {OBJECTS[person.held]}" if person.held else "")
            for person in self.people
        )
        return f"a photo of {people} {SCENES[self.scene]}"


def _choice(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def identity_count() -> int:
    """How many people the world can hold.

    >>> identity_count() > 100_000
    True
    """
    shared = math.prod(map(len, (SKINS, HAIR_COLORS, EYES, FACES, BROWS, GLASSES, CHEEKS, CLOTH, PATTERNS)))
    hats = 1 + (len(HATS) - 1) * len(CLOTH)
    man = len(HAIR_STYLES["man"]) * len(BEARDS)
    woman = len(HAIR_STYLES["woman"]) * len(LIPS) * 2
    return shared * hats * (man + woman)


def random_identity(rng: np.random.Generator) -> Identity:
    """Somebody, drawn uniformly but half of the people wear no hat, no glasses or a plain shirt."""
    word = _choice(rng, ["man", "woman"])
    hat = _choice(rng, HATS[1:]) if rng.random() < 0.5 else "no"
    return Identity(
        word=word,  # type: ignore[arg-type]  # the two literals above
        skin=_choice(rng, list(SKINS)),
        hair_style=_choice(rng, HAIR_STYLES[word]),  # type: ignore[index]
        hair_color=_choice(rng, list(HAIR_COLORS)),
        eyes=_choice(rng, list(EYES)),
        face=_choice(rng, FACES),
        brows=_choice(rng, BROWS),
        glasses=_choice(rng, GLASSES[1:]) if rng.random() < 0.5 else "no",
        beard=_choice(rng, BEARDS) if word == "man" else "no beard",
        lips=_choice(rng, list(LIPS)) if word == "woman" else "",
        earrings=bool(word == "woman" and rng.random() < 0.5),
        cheeks=_choice(rng, CHEEKS),
        hat=hat,
        hat_color=_choice(rng, list(CLOTH)) if hat != "no" else "",
        shirt_color=_choice(rng, list(CLOTH)),
        shirt_pattern=_choice(rng, PATTERNS[1:]) if rng.random() < 0.5 else "plain",
    )


def _pose(rng: np.random.Generator, identity: Identity, held: str, x: float, unit: float) -> Person:
    # The top of a hat stays in the picture, and the hands with what they hold do too.
    top = unit * (0.95 if identity.hat != "no" else 0.68)
    y = float(np.clip(0.36 + (unit - 0.3) * 0.55 + rng.uniform(-0.03, 0.03), top + 0.01, 0.62))
    return Person(identity, held, x, y, unit, float(rng.uniform(-1, 1)), float(rng.uniform(0, 1)))


def random_picture(
    rng: np.random.Generator, identities: tuple[Identity, ...] | None = None, close: float = 0.3, pair: float = 0.2
) -> Picture:
    """A picture of one person or two.

    `close` is the share of close-ups among single portraits (a close-up shows no hands, so nothing is held); `pair` the
    share of couples. With `identities` given, exactly they are in it.
    """
    if identities is None:
        identities = tuple(random_identity(rng) for _ in range(2 if rng.random() < pair else 1))
    scene = _choice(rng, list(SCENES))
    variation = int(rng.integers(2**31))
    if len(identities) == 2:
        unit = rng.uniform(0.27, 0.33, size=2)
        xs = (rng.uniform(0.24, 0.3), rng.uniform(0.7, 0.76))
        people = tuple(_pose(rng, who, "", float(x), float(u)) for who, x, u in zip(identities, xs, unit, strict=True))
        return Picture(scene, people, variation)
    if rng.random() < close:
        person = _pose(rng, identities[0], "", float(rng.uniform(0.44, 0.56)), float(rng.uniform(0.42, 0.52)))
    else:
        held = _choice(rng, list(OBJECTS))
        person = _pose(rng, identities[0], held, float(rng.uniform(0.36, 0.64)), float(rng.uniform(0.31, 0.38)))
    return Picture(scene, (person,), variation)


def picture_at(seed: int, index: int, close: float = 0.3, pair: float = 0.2) -> Picture:
    """Picture `index` of the world `seed`: the same whoever asks, in whatever order."""
    return random_picture(np.random.default_rng([seed, index]), close=close, pair=pair)
