"""Which of an evaluation's pictures a page can show, each beside what production and the prior drew from the same seed.

A page is one file: it holds `MOST_SHOTS` pictures of a release, however many were drawn (`sd15`: 2,400 and as many of
pairs as are asked for). `choose` takes all, or the extremes, some in which nobody was found, and of the rest as many of
every prompt, person and seed as of the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from PIL import Image

from evaluation.protocol import Cell, Drawings
from evaluation.scores import Scores
from evaluation.worst_pictures import RankedPicture, best_pictures, nobody_found, worst_pictures

# With production's and the prior's beside them and at most `SIDE` pixels wide, a page of photographs stays below 15 MB.
MOST_SHOTS, SIDE = 320, 224
RANKED = 10
# What is ranked, and what a section about it is called.
_RANKINGS = {
    "identity": "Identity",
    "prompt_consistency": "Prompt consistency",
    "pair_identity": "Two people: identity of the worse of the two",
}


@dataclass(frozen=True)
class Shot:
    """One picture of a release, and what was drawn and measured beside it.

    `values` are the release's, those of the prior as `prior_…`; `before` are production's. `nobody`: identity found
    nobody in it or, of two, not both.
    """

    cell: Cell
    picture: Image.Image
    router: Float[np.ndarray, "h w"] | None = None
    production: Image.Image | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    before: Mapping[str, float] = field(default_factory=dict)
    nobody: bool = False


@dataclass(frozen=True)
class Ranking:
    """The pictures at both ends of one measure."""

    title: str
    worst: Sequence[RankedPicture]
    best: Sequence[RankedPicture]


@dataclass(frozen=True)
class Gallery:
    """Pictures to look through: `drawn` of them were made, in `nobody` of those nobody was found.

    `priors`: what the prior alone drew for a shot, by `Cell.prior`. `references`: each subject's photo.
    """

    shots: Sequence[Shot]
    priors: Mapping[Cell, Image.Image]
    references: Mapping[str, Image.Image]
    rankings: Sequence[Ranking]
    drawn: int
    nobody: int


def rankings(scores: Scores) -> list[Ranking]:
    """Worst and best of every measure that is ranked and was measured."""
    found = [
        Ranking(title, worst_pictures(scores, measure, RANKED), best_pictures(scores, measure, RANKED))
        for measure, title in _RANKINGS.items()
    ]
    return [ranking for ranking in found if ranking.worst]


def choose(scores: Scores, most: int = MOST_SHOTS) -> list[Cell]:
    """The cells to show."""
    chosen = dict.fromkeys(scores.cells)
    if len(chosen) > most:
        ends = [one.cell for ranking in rankings(scores) for one in (*ranking.worst, *ranking.best)]
        missing = nobody_found(scores)
        nobody = [cell for cell in scores.cells if cell in missing][: most // 4]
        chosen = dict.fromkeys([*ends, *nobody][:most])
        chosen |= dict.fromkeys(_spread(scores.cells, list(chosen), most - len(chosen)))
    return list(chosen)


def gather(
    scores: Scores,
    chosen: Sequence[Cell],
    drawn: Drawings,
    references: Mapping[str, Image.Image],
    before: tuple[Scores, Drawings] | None = None,
) -> Gallery:
    """The chosen pictures with all that belongs to them; `before` = production's, measured by the same protocol.

    In reading order: prompt by prompt, seed by seed, people in the order of `references`, pairs last.
    KeyError where a chosen picture, its prior's or a reference is missing. Production may lack some.
    """
    missing, values = nobody_found(scores), _values(scores)
    place = {name: number for number, name in enumerate(references)}
    chosen = sorted(chosen, key=lambda cell: (cell.prompt, cell.seed, [place[name] for name in cell.names]))
    theirs, their_pictures = ({}, {}) if before is None else (_values(before[0]), before[1])
    shots = [
        Shot(
            cell=cell,
            picture=drawn[cell].picture,
            router=drawn[cell].router,
            production=their_pictures[cell].picture if cell in their_pictures else None,
            values=values[cell],
            before=theirs.get(cell, {}),
            nobody=cell in missing,
        )
        for cell in chosen
    ]
    priors = {cell.prior: drawn[cell.prior].picture for cell in chosen}
    shown = {name for cell in chosen for name in cell.names}
    people = {name: photo for name, photo in references.items() if name in shown}
    return Gallery(shots, priors, people, rankings(scores), len(scores.cells), len(missing))


def _spread(cells: Sequence[Cell], taken: Sequence[Cell], count: int) -> list[Cell]:
    """`count` further cells: one of each prompt in turn, of whom and of which seed the fewest are taken so far."""
    people, seeds = Counter(n for cell in taken for n in cell.names), Counter(cell.seed for cell in taken)
    left: dict[int, list[Cell]] = {}
    done = set(taken)
    for cell in cells:
        if cell not in done:
            left.setdefault(cell.prompt, []).append(cell)
    chosen: list[Cell] = []
    while len(chosen) < count and (waiting := [one for one in left.values() if one]):
        for prompt in waiting[: count - len(chosen)]:
            cell = min(prompt, key=lambda one: (max(people[name] for name in one.names), seeds[one.seed]))
            prompt.remove(cell)
            chosen.append(cell)
            people.update(cell.names)
            seeds[cell.seed] += 1
    return chosen


def _values(scores: Scores) -> dict[Cell, dict[str, float]]:
    return {
        cell: {name: float(value) for name, column in scores.values.items() if (value := column[place]) is not None}
        for place, cell in enumerate(scores.cells)
    }
