"""Which word of the caption is which person in the picture, and which token of the prompt is that word.

Captions tend to name people from left to right and instances are numbered from left to right, so order alone binds most
of them; where a caption says where its people are, that goes first, and image-text scores overrule the order where they
clearly disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from preprocessing.mentions import Word, person_words
from preprocessing.placing import PLACES, misplacement
from preprocessing.segmentation import Person

__all__ = ["Subject", "Word", "bind", "person_words", "token_index"]

# What a caption says of places outweighs any difference of cosines.
_PLACE_WEIGHT = 10.0
_FORBIDDEN = -1e6
_SUREST = 1.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A person of the picture bound to a word of its caption; `box` is [x1, y1, x2, y2] in pixels.

    score: how sure the segmenter is of the person. binding: how much better this binding of everybody is than the best
    one in which this person has another word, as a sum of cosines, 1 at most; None where there was nothing to choose.
    """

    word: str
    start: int
    end: int
    instance: int
    box: tuple[float, float, float, float]
    face: Mapping[str, Any] | None
    score: float
    binding: float | None = None

    def record(self) -> dict[str, Any]:
        """As it stands in a sample's json."""
        record = {**asdict(self), "box": list(self.box)}
        if self.binding is None:
            del record["binding"]
        return record


def bind(
    words: Sequence[Word],
    people: Sequence[Person],
    scores: Float[np.ndarray, "words people"] | None = None,
    faces: Mapping[int, Mapping[str, Any]] | None = None,
    margin: float = 0.02,
) -> list[Subject]:
    """Bind words to people one to one; what is left over on either side stays unbound. Sorted by place in the caption.

    Without scores the largest people are bound, left to right, but for words whose place the caption tells. With scores
    (higher is better) the best assignment as a whole wins if its mean is more than `margin` above the order's: equal
    words have equal scores, and order decides. 0 where the order of the words says nothing.
    faces: instance number -> face, copied into the subject.
    """
    if not words or not people:
        return []
    misplaced = _misplaced(words, people)
    pairs = _in_order(words, people, misplaced)
    certainty: dict[tuple[int, int], float] = {}
    if scores is not None:
        if scores.shape != (len(words), len(people)):
            raise ValueError(f"scores {scores.shape} do not fit {len(words)} words and {len(people)} people")
        wish = scores - _PLACE_WEIGHT * misplaced
        best = _best(wish)
        if _total(wish, best) - _total(wish, pairs) > margin * len(pairs):
            pairs = _left_to_right(words, people, best)
        certainty = _certainty(words, wish, pairs)
    subjects = []
    for i, j in sorted(pairs):
        word, person = words[i], people[j]
        face = (faces or {}).get(person.instance)
        sure = certainty.get((i, j))
        subjects.append(Subject(word.text, word.start, word.end, person.instance, person.box, face, person.score, sure))
    return subjects


def _misplaced(words: Sequence[Word], people: Sequence[Person]) -> Float[np.ndarray, "words people"]:
    """How far each person is from where the caption has each word's person, 0 … 1."""
    by_x = sorted(range(len(people)), key=lambda j: people[j].instance)
    by_depth = sorted(range(len(people)), key=lambda j: people[j].area)  # the nearer, the larger
    ranks = {"x": {j: rank for rank, j in enumerate(by_x)}, "depth": {j: rank for rank, j in enumerate(by_depth)}}
    misplaced = np.zeros((len(words), len(people)))
    for i, word in enumerate(words):
        if word.place:
            rank = ranks[PLACES[word.place][0]]
            misplaced[i] = [misplacement(word.place, rank[j], len(people)) for j in range(len(people))]
    return misplaced


def _in_order(words: Sequence[Word], people: Sequence[Person], misplaced: np.ndarray) -> list[tuple[int, int]]:
    """Word and person by order and told places alone."""
    if not misplaced.any():
        count = min(len(words), len(people))
        largest = sorted(range(len(people)), key=lambda i: -people[i].area)[:count]
        return list(zip(range(count), sorted(largest, key=lambda i: people[i].instance), strict=True))
    rank = np.argsort(np.argsort([person.instance for person in people])) / max(len(people) - 1, 1)
    turn = np.arange(len(words)) / max(len(words) - 1, 1)
    area = np.array([person.area for person in people])
    wish = -_PLACE_WEIGHT * misplaced + 0.1 * area[None] - 0.01 * (turn[:, None] - rank[None]) ** 2
    return _left_to_right(words, people, _best(wish))


def _certainty(words: Sequence[Word], wish: np.ndarray, pairs: Sequence[tuple[int, int]]) -> dict[Any, float]:
    """By how much the pairs beat the best assignment in which a pair's person has a word of another text, or none."""
    total = _total(wish, pairs)
    certainty = {}
    for i, j in pairs:
        other = wish.copy()
        other[[k for k, word in enumerate(words) if word.text.lower() == words[i].text.lower()], j] = _FORBIDDEN
        rival = _total(other, _best(other))
        if rival > _FORBIDDEN / 2:
            certainty[i, j] = round(min(total - rival, _SUREST), 4)
    return certainty


def _best(wish: np.ndarray) -> list[tuple[int, int]]:
    rows, columns = linear_sum_assignment(wish, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _total(wish: np.ndarray, pairs: Sequence[tuple[int, int]]) -> float:
    return float(sum(wish[pair] for pair in pairs))


def _left_to_right(
    words: Sequence[Word], people: Sequence[Person], pairs: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Equal words cannot be told apart by scores: give each group of them its people from left to right."""
    groups: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for i, j in sorted(pairs):
        rows, columns = groups.setdefault((words[i].text.lower(), words[i].place), ([], []))
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
