"""Which word of the caption is which person in the picture, and which token of the prompt is that word.

Captions name people from left to right and instances are numbered from left to right, so order alone binds most of
them; image-text scores overrule it only when they clearly disagree.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from preprocessing.segmentation import Person

# Singular only: a plural word is several people at once and cannot carry one of them.
_PERSON = (
    "man|woman|boy|girl|person|lady|guy|gentleman|child|kid|baby|toddler|teenager|bride|groom|"
    "businessman|businesswoman|policeman|policewoman|fireman|fisherman|cowboy|soldier|actor|actress|model|"
    "male|female|player|singer|dancer"
)
_PERSON_WORD = re.compile(rf"(?<![\w-])(?:{_PERSON})(?![\w-])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a caption that names one person; `start` and `end` are character offsets."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Subject:
    """A person of the picture bound to a word of its caption; `box` is [x1, y1, x2, y2] in pixels."""

    word: str
    start: int
    end: int
    instance: int
    box: tuple[float, float, float, float]
    face: Mapping[str, Any] | None
    score: float

    def record(self) -> dict[str, Any]:
        """As it stands in a sample's json."""
        return {**asdict(self), "box": list(self.box)}


def person_words(caption: str) -> list[Word]:
    """The words that name one person each, in the caption's order."""
    return [Word(match[0], match.start(), match.end()) for match in _PERSON_WORD.finditer(caption)]


def bind(
    words: Sequence[Word],
    people: Sequence[Person],
    scores: Float[np.ndarray, "words people"] | None = None,
    faces: Mapping[int, Mapping[str, Any]] | None = None,
    margin: float = 0.02,
) -> list[Subject]:
    """Bind words to people one to one; what is left over on either side stays unbound. Sorted by place in the caption.

    Without scores the largest people are bound, left to right. With scores (higher is better) the best assignment as a
    whole wins if its mean score is more than `margin` above the order's: equal words have equal scores, and order
    decides.
    faces: instance number -> face, copied into the subject.
    """
    if not words or not people:
        return []
    count = min(len(words), len(people))
    largest = sorted(range(len(people)), key=lambda i: -people[i].area)[:count]
    columns = sorted(largest, key=lambda i: people[i].instance)
    pairs = list(zip(range(count), columns, strict=True))
    if scores is not None:
        if scores.shape != (len(words), len(people)):
            raise ValueError(f"scores {scores.shape} do not fit {len(words)} words and {len(people)} people")
        rows, best = linear_sum_assignment(scores, maximize=True)
        gain = scores[rows, best].mean() - np.mean([scores[pair] for pair in pairs])
        if gain > margin:
            pairs = _left_to_right(words, people, list(zip(rows.tolist(), best.tolist(), strict=True)))
    subjects = []
    for i, j in sorted(pairs):
        word, person = words[i], people[j]
        face = (faces or {}).get(person.instance)
        subjects.append(Subject(word.text, word.start, word.end, person.instance, person.box, face, person.score))
    return subjects


def _left_to_right(
    words: Sequence[Word], people: Sequence[Person], pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Equal words cannot be told apart by scores: give each group of them its people from left to right."""
    groups: dict[str, tuple[list[int], list[int]]] = {}
    for i, j in sorted(pairs):
        rows, columns = groups.setdefault(words[i].text.lower(), ([], []))
        rows.append(i)
        columns.append(j)
    return [
        pair
        for rows, columns in groups.values()
        for pair in zip(rows, sorted(columns, key=lambda j: people[j].instance), strict=True)
    ]


def token_index(tokenizer: Any, caption: str, span: tuple[int, int]) -> int | None:
    """Place of a word's last token in the tokenised caption, BOS counted; None where truncation cut the word off.

    The last token, because with causal attention only it has seen the whole word. `tokenizer` is a fast one: characters
    are followed through normalisation by its offsets, so sub-tokens, repeated words and odd spaces need no guessing.
    """
    start, end = span
    if not 0 <= start < end <= len(caption):
        raise ValueError(f"span {span} is not inside the caption of {len(caption)} characters")
    encoding = tokenizer(caption, return_offsets_mapping=True, truncation=True, max_length=tokenizer.model_max_length)
    offsets = encoding["offset_mapping"]
    # Special tokens have empty spans. The word is whole only if a token reaches its last character.
    hits = [i for i, (low, high) in enumerate(offsets) if low < high and low < end and high > start]
    return hits[-1] if hits and offsets[hits[-1]][1] >= end else None
