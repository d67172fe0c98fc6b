"""The protocol: which pictures are drawn, of whom, from which prompts and seeds.

A *cell* is one picture: prompt × seed × subject, prompt × seed × two subjects, or, for the prior alone, prompt × seed ×
class words. The same cells are drawn with the candidate, with the prior and (if there is one) with the release in
production; every number compares pictures of the same prompt and seed.

    subjects = [Subject("000181", "man", photo), …]
    release = draw_cells(cells(settings, subjects), draw, subjects)
    prior = draw_cells(prior_cells(settings, subjects), draw, subjects)
    scores = scoring.score_pictures(release, prior, observations.photographed(subjects, …), settings, instruments)
    metrics = summary.summarise(scores, …)
    verdict = gate.gate(metrics, publish_settings, comparison.compare(scores, production_scores))

FastComposer's protocol, which the MoA paper follows, is `cells` of 15 CelebA identities × 40 prompts × 4 seeds. Of two
subjects it published results and no protocol; here the pairs of those 15 people, 105 in all, are drawn with the prompts
of the 40 that say what both can do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from jaxtyping import Float
from PIL import Image
from pydantic import BaseModel, ConfigDict

from infra.evaluation_settings import EvaluateSettings, PairPromptSettings


@dataclass(frozen=True)
class Subject:
    """A person never seen in training: a name, a class word, a reference photo, and other photos of them if any.

    `original` is the reference before it was cropped, in which a face detector looks for the face, as FastComposer's
    does; None where the reference is all there is.
    """

    name: str
    word: str
    reference: Image.Image
    others: tuple[Image.Image, ...] = ()
    original: Image.Image | None = None


class Cell(BaseModel):
    """One picture to draw. `subject=None` means the prior alone; `partner_word`, that the prompt names two people.

    `prompt` is its number among `prompts` and, going on from there, `pair_prompts`.
    """

    model_config = ConfigDict(frozen=True)

    subject: str | None
    word: str
    prompt: int
    seed: int
    text: str
    group: str = ""
    partner: str | None = None
    partner_word: str = ""

    @property
    def prior(self) -> "Cell":
        """The cell that the prior alone draws for the same prompt and seed."""
        return self.model_copy(update={"subject": None, "partner": None})

    @property
    def is_pair(self) -> bool:
        """Whether the prompt names two people."""
        return bool(self.partner_word)

    @property
    def names(self) -> tuple[str, ...]:
        """Who is to be in the picture, in the prompt's order; () for the prior alone."""
        return tuple(name for name in (self.subject, self.partner) if name is not None)

    @property
    def cast(self) -> dict[str, list[str]]:
        """Class word → the names bound to it, in the prompt's order: two of one word share it."""
        cast: dict[str, list[str]] = {}
        for name, word in zip(self.names, (self.word, self.partner_word), strict=False):
            cast.setdefault(word, []).append(name)
        return cast


@dataclass(frozen=True)
class Drawing:
    """A drawn picture and, where it was recorded, the mean weight of the personalization expert (1 − R_0)."""

    picture: Image.Image
    router: Float[np.ndarray, "h w"] | None = None


Drawings = Mapping[Cell, Drawing]
# Prompts, the subjects in each (none: the prior alone) and seeds of one batch in; one drawing each out.
Draw = Callable[[Sequence[str], Sequence[Sequence[Subject]], Sequence[int]], Sequence[Drawing]]


def cells(settings: EvaluateSettings, subjects: Sequence[Subject]) -> list[Cell]:
    """Every subject × prompt × seed, all subjects of one prompt and seed side by side; then the pairs', likewise."""
    couples = pairs(subjects, settings.pairs)
    return [
        *(
            _cell(number, prompt, seed, subject)
            for number, prompt in enumerate(settings.prompts)
            for seed in settings.seeds
            for subject in subjects
        ),
        *(
            _cell(number, prompt, seed, *couple)
            for number, prompt in enumerate(settings.pair_prompts, len(settings.prompts))
            for seed in settings.seeds
            for couple in couples
        ),
    ]


def prior_cells(settings: EvaluateSettings, subjects: Sequence[Subject]) -> list[Cell]:
    """What the prior alone has to draw: every prompt × seed, once per class word or two words."""
    return list(dict.fromkeys(cell.prior for cell in cells(settings, subjects)))


def pairs(subjects: Sequence[Subject], count: int) -> list[tuple[Subject, Subject]]:
    """The first `count` of all pairs, or all, in an order in which everybody comes as often as everybody else.

    It is that of a round-robin tournament: in each round everybody has one partner, whom they never have again. In the
    first round neighbours meet: a man and a woman, where the subjects are men and women in turn.
    """
    places: list[int | None] = [*range(len(subjects)), *([None] if len(subjects) % 2 else [])]
    # The circle method: the first stands still, the others move on by one place a round.
    circle = places[1::2] + places[-2:0:-2]
    rounds = []
    for turn in range(len(circle)):
        row = [places[0], *circle[turn:], *circle[:turn]]
        half = len(row) // 2
        met = [(row[0], row[1]), *((row[-k], row[k + 1]) for k in range(1, half))]
        rounds.append(sorted((min(a, b), max(a, b)) for a, b in met if a is not None and b is not None))
    return [(subjects[a], subjects[b]) for a, b in chain.from_iterable(rounds)][:count]


def batches(todo: Sequence[Cell], size: int) -> Iterator[list[Cell]]:
    """Consecutive batches of at most `size` cells: the unit of work of one actor."""
    for start in range(0, len(todo), size):
        yield list(todo[start : start + size])


def draw_cells(
    todo: Sequence[Cell], draw: Draw, subjects: Sequence[Subject], batch_size: int = 8
) -> dict[Cell, Drawing]:
    """Draw `todo` in batches; cells of the prior alone (`subject=None`) are drawn without a subject."""
    by_name = {subject.name: subject for subject in subjects}
    drawn: dict[Cell, Drawing] = {}
    for batch in batches(todo, batch_size):
        people = [[by_name[name] for name in cell.names] for cell in batch]
        drawings = draw([cell.text for cell in batch], people, [cell.seed for cell in batch])
        drawn.update(zip(batch, drawings, strict=True))
    return drawn


def _cell(
    prompt: int, described: PairPromptSettings, seed: int, subject: Subject, partner: Subject | None = None
) -> Cell:
    words = subject.word if partner is None else f"{subject.word} and a {partner.word}"
    return Cell(
        subject=subject.name,
        word=subject.word,
        prompt=prompt,
        seed=seed,
        text=described.template.format(word=words),
        group=described.group,
        partner=None if partner is None else partner.name,
        partner_word="" if partner is None else partner.word,
    )
