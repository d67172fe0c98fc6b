"""Paperfolk's group pictures: three or four people in a row, two at different distances, captions in many phrasings.

Beside the world of `paperfolk_world`, whose pictures stay what they are: its models are trained on them. A phrasing
comes with its truth: which word, once plurals are written out, is which person.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from preprocessing.sources.paperfolk_world import SCENES, Identity, Person, Picture, random_identity, random_picture

MOST_PEOPLE = 4
# Height of a head as a fraction of the picture's side: as large as that many people leave room for.
_UNITS = {3: (0.19, 0.23), 4: (0.155, 0.18)}
_PLACES = {3: (0.19, 0.5, 0.81), 4: (0.15, 0.38, 0.62, 0.85)}
_COUNTS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {"man": "men", "woman": "women"}


@dataclass(frozen=True)
class Phrasing:
    """A caption and its truth: its k-th person's word is words[k] and names picture.people[people[k]].

    Where several people have one word and the caption does not tell them apart, they come from left to right.
    """

    name: str
    caption: str
    words: tuple[str, ...]
    people: tuple[int, ...]


def group_at(seed: int, index: int, people: int) -> Picture:
    """Group picture `index` of the world `seed` with 1 to 4 people: the same whoever asks, in whatever order."""
    return group_picture(np.random.default_rng([seed, people, index]), people)


def group_picture(rng: np.random.Generator, people: int) -> Picture:
    """People side by side, hidden by each other a little. One or two are drawn as `random_picture` draws them.

    ValueError for more than four.
    """
    if not 1 <= people <= MOST_PEOPLE:
        raise ValueError(f"a group of {people} people: 1 to {MOST_PEOPLE} have room")
    who = tuple(random_identity(rng) for _ in range(people))
    if people <= 2:
        return random_picture(rng, who)
    scene, variation = _scene(rng)
    units = rng.uniform(*_UNITS[people], size=people)
    xs = np.array(_PLACES[people]) + rng.uniform(-0.02, 0.02, size=people)
    return Picture(scene, tuple(_standing(rng, *one) for one in zip(who, xs, units, strict=True)), variation)


def distant_pair(seed: int, index: int) -> Picture:
    """Two people, one near and one far: the far one is smaller and stands higher."""
    rng = np.random.default_rng([seed, 99, index])
    who = random_identity(rng), random_identity(rng)
    scene, variation = _scene(rng)
    near, far = float(rng.uniform(0.28, 0.33)), float(rng.uniform(0.15, 0.18))
    units = (near, far) if rng.random() < 0.5 else (far, near)
    xs = (float(rng.uniform(0.24, 0.3)), float(rng.uniform(0.7, 0.76)))
    return Picture(scene, tuple(_standing(rng, *one) for one in zip(who, xs, units, strict=True)), variation)


def phrasings(picture: Picture, seed: int) -> Iterator[Phrasing]:
    """Ways to say who is in a picture of several people; of one, only the world's own.

    In "listed" they come from left to right, in "shuffled", "plurals" and "places" in any order.
    """
    words = [person.identity.word for person in picture.people]
    where, count = SCENES[picture.scene], len(words)
    order = tuple(range(count))

    def phrase(name: str, text: str, said: Sequence[int], as_words: Sequence[str] | None = None) -> Phrasing:
        spoken = tuple(as_words) if as_words is not None else tuple(words[k] for k in said)
        return Phrasing(name, f"a photo of {text} {where}", spoken, tuple(said))

    yield phrase("listed", _and([f"a {word}" for word in words]), order)
    if count == 1:
        return
    rng = np.random.default_rng([seed, picture.variation])
    shuffled = tuple(int(k) for k in rng.permutation(count))
    # Equal words cannot be told apart: among them the order stays.
    groups = {word: [k for k in order if words[k] == word] for word in dict.fromkeys(words[k] for k in shuffled)}
    turns = {word: iter(members) for word, members in groups.items()}
    told = tuple(next(turns[words[k]]) for k in shuffled)
    yield phrase("shuffled", _and([f"a {words[k]}" for k in told]), told)
    grouped = [k for members in groups.values() for k in members]
    numbers = [_number(len(members), word) for word, members in groups.items()]
    yield phrase("plurals", _and(numbers), grouped)
    bare = [_PLURALS[word] if len(members) > 1 else f"a {word}" for word, members in groups.items()]
    yield phrase("plurals without numbers", _and(bare), grouped)
    yield phrase("people", f"{_COUNTS[count]} people", order, ["person"] * count)
    yield phrase("a group", "a couple" if count == 2 else "a group of people", order, ["person"] * count)
    places = [f"a {words[k]} {_place(k, count)}" for k in shuffled]
    yield phrase("places behind", _and(places), shuffled)
    yield phrase("places before", ", ".join(f"{_place(k, count)} a {words[k]}" for k in shuffled), shuffled)
    yield phrase("a line", f"from left to right {_and([f'a {word}' for word in words])}", order)
    backwards = order[::-1]
    yield phrase("a line backwards", f"from right to left {_and([f'a {words[k]}' for k in backwards])}", backwards)


def depth_phrasings(picture: Picture) -> Iterator[Phrasing]:
    """A `distant_pair` told by who is in front of whom."""
    words = [person.identity.word for person in picture.people]
    near = int(picture.people[1].unit > picture.people[0].unit)
    far, where = 1 - near, SCENES[picture.scene]
    texts = {
        "in front of": (near, far, "a {} in front of a {}"),
        "behind": (far, near, "a {} behind a {}"),
        "foreground": (near, far, "a {} in the foreground and a {} in the background"),
    }
    for name, (first, second, text) in texts.items():
        caption = f"a photo of {text.format(words[first], words[second])} {where}"
        yield Phrasing(name, caption, (words[first], words[second]), (first, second))


def _standing(rng: np.random.Generator, who: Identity, x: float, unit: float) -> Person:
    # Heads in one height, more or less; the lower edge cuts everybody, as it does in a photo of a group.
    top = unit * (0.95 if who.hat != "no" else 0.68) + 0.01
    low = max(1.0 - 2.5 * unit, top)
    y = float(rng.uniform(low, max(low, 0.66)))
    return Person(who, "", float(x), y, float(unit), float(rng.uniform(-1, 1)), float(rng.uniform(0, 1)))


def _scene(rng: np.random.Generator) -> tuple[str, int]:
    return list(SCENES)[int(rng.integers(len(SCENES)))], int(rng.integers(2**31))


def _place(k: int, count: int) -> str:
    if k == 0:
        return "on the left"
    if k == count - 1:
        return "on the right"
    return "in the middle" if count == 3 else f"{'second' if k == 1 else 'third'} from the left"


def _number(count: int, word: str) -> str:
    return f"a {word}" if count == 1 else f"{_COUNTS[count]} {_PLURALS[word]}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
