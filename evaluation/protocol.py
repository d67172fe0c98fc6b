"""The protocol: which pictures are drawn, what is measured of them, and whether the result may become production.

A *cell* is one picture: prompt × seed × subject, or prompt × seed × class word for the prior alone. The same cells are
drawn with the candidate, with the prior and (if there is one) with the release in production; every number compares
pictures of the same prompt and seed.

    subjects = [Subject("000181", "man", photo), …]
    release = draw_cells(cells(settings, subjects), draw, subjects)
    prior = draw_cells(prior_cells(settings, subjects), draw, subjects)
    metrics = scoring.score(release, prior, subjects, settings, instruments)
    verdict = gate(metrics, production_metrics, publish_settings)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from pydantic import BaseModel, ConfigDict

from evaluation.identity import IdentityEncoder
from evaluation.measures import Measure
from evaluation.metrics import Metrics
from evaluation.people import Locate
from evaluation.prompt_consistency import PromptScorer
from infra.settings import EvaluateSettings, PublishSettings


@dataclass(frozen=True)
class Subject:
    """A person never seen in training: a name, a class word, a reference photo, and other photos of them if any."""

    name: str
    word: str
    reference: Image.Image
    others: tuple[Image.Image, ...] = ()


class Cell(BaseModel):
    """One picture to draw; `subject=None` means the prior alone."""

    model_config = ConfigDict(frozen=True)

    subject: str | None
    word: str
    prompt: int
    seed: int
    text: str

    @property
    def prior(self) -> "Cell":
        """The cell that the prior alone draws for the same prompt and seed."""
        return self.model_copy(update={"subject": None})


@dataclass(frozen=True)
class Drawing:
    """A drawn picture and, where it was recorded, the mean weight of the personalization expert (1 − R_0)."""

    picture: Image.Image
    router: Float[np.ndarray, "h w"] | None = None


Drawings = Mapping[Cell, Drawing]
# Prompts, subjects (None: the prior alone) and seeds of one batch in; one drawing each out.
Draw = Callable[[Sequence[str], Sequence[Subject | None], Sequence[int]], Sequence[Drawing]]


@dataclass(frozen=True)
class Instruments:
    """What pictures are measured with; `locate_face` (sd15: MTCNN) finds what identity looks at, if not people."""

    identity: IdentityEncoder
    prompts: PromptScorer
    locate: Locate
    locate_face: Locate | None = None


def cells(settings: EvaluateSettings, subjects: Sequence[Subject]) -> list[Cell]:
    """Every subject × prompt × seed, all subjects of one prompt and seed next to each other."""
    return [
        _cell(settings, subject.name, subject.word, prompt, seed)
        for prompt in range(len(settings.prompts))
        for seed in settings.seeds
        for subject in subjects
    ]


def prior_cells(settings: EvaluateSettings, subjects: Sequence[Subject]) -> list[Cell]:
    """What the prior alone has to draw: every prompt × seed, once per class word."""
    return list(dict.fromkeys(cell.prior for cell in cells(settings, subjects)))


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
        people = [None if cell.subject is None else by_name[cell.subject] for cell in batch]
        drawings = draw([cell.text for cell in batch], people, [cell.seed for cell in batch])
        drawn.update(zip(batch, drawings, strict=True))
    return drawn


def _cell(settings: EvaluateSettings, subject: str | None, word: str, prompt: int, seed: int) -> Cell:
    text = settings.prompts[prompt].template.format(word=word)
    return Cell(subject=subject, word=word, prompt=prompt, seed=seed, text=text)


class Check(BaseModel):
    """One question of the gate. `value=None`: nothing to measure it on (no prompt names an object, say)."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: float | None
    limit: float
    better: Literal["higher", "lower"]
    passed: bool
    sentence: str


class Verdict(BaseModel):
    """May the release be promoted? `reasons` says it in sentences: what failed, or that nothing did."""

    promote: bool
    reasons: list[str]
    checks: list[Check]


def gate(metrics: Metrics, production: Metrics | None, publish: PublishSettings) -> Verdict:
    """Hold a release's metrics against the limits of `publish` and against the release in production, if there is one.

    A measure that does not apply passes and says so; identity always applies: unmeasured, it fails.
    """
    checks = [
        _check("identity gain over the prior", metrics.identity_gain, publish.min_identity_gain, "higher", needed=True),
        _check("scene accuracy relative to the prior", metrics.scene_ratio, publish.min_scene_ratio, "higher"),
        _check("held-object accuracy relative to the prior", metrics.object_ratio, publish.min_object_ratio, "higher"),
        _check(
            "background change under a subject swap", metrics.background_change, publish.max_background_change, "lower"
        ),
    ]
    if production is not None and production.identity is not None:
        least = production.identity.mean - publish.max_identity_regression
        checks.append(_check("identity beside production's release", metrics.identity, least, "higher", needed=True))
    failed = [check.sentence for check in checks if not check.passed]
    return Verdict(promote=not failed, reasons=failed or ["Every check of the gate passed."], checks=checks)


def _check(
    name: str, measured: Measure | None, limit: float, better: Literal["higher", "lower"], needed: bool = False
) -> Check:
    bound = "at least" if better == "higher" else "at most"
    title = name[0].upper() + name[1:]
    if measured is None or not np.isfinite(measured.mean):
        # An infinite ratio has a divisor of zero: the prior scored nothing, or no two seeds differ.
        passed = measured is None and not needed
        why = "does not apply to these prompts and seeds" if passed else "could not be measured"
        return Check(name=name, value=None, limit=limit, better=better, passed=passed, sentence=f"{title} {why}.")
    passed = measured.mean >= limit if better == "higher" else measured.mean <= limit
    sentence = f"{title} is {measured.mean:.3f}; {bound} {limit:.3f} is {'required' if not passed else 'asked for'}."
    return Check(name=name, value=measured.mean, limit=limit, better=better, passed=passed, sentence=sentence)
