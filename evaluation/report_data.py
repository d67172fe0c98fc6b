"""What the report's page shows, as plain data: pictures, sentences, numbers, and nothing of how they are laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from evaluation.comparison import Comparison
from evaluation.gallery import Gallery
from evaluation.gate import Verdict
from evaluation.groups import GroupTable
from evaluation.metrics import Metrics


@dataclass(frozen=True)
class Fact:
    """A number worth a large font, what it counts, and a remark."""

    label: str
    value: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Refusal:
    """How many photos were refused for one reason, and what that means."""

    reason: str
    count: int
    sentence: str
    example: str = ""


@dataclass(frozen=True)
class Intake:
    """What came in and what became of it; `kept` plus all refusals equals `photos`."""

    photos: int
    kept: int
    refusals: Sequence[Refusal] = ()


@dataclass(frozen=True)
class Photo:
    """A kept photo as the stages saw it: caption, person masks (0 = nobody, k = person k), the truth where known."""

    picture: Image.Image
    caption: str
    instances: Int[np.ndarray, "H W"] | None = None
    truth: str = ""
    note: str = ""


@dataclass(frozen=True)
class RefusedPhoto:
    """One refused file: its name, why, and the picture if it has one."""

    name: str
    reason: str
    sentence: str
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Curve:
    """One number over the training steps; `marks`: steps after which a stopped training went on."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    log: bool = False
    note: str = ""
    marks: Sequence[float] = ()


@dataclass(frozen=True)
class StepPictures:
    """What was drawn after so many steps."""

    step: int
    picture: Image.Image


@dataclass(frozen=True)
class Course:
    """How a training went, from its first start to its last step: was anything lost, and who did which part of it.

    `attempts`: rows of a table with the same columns.
    """

    whole: bool
    headline: str
    sentences: Sequence[str]
    attempts: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True)
class SubjectRow:
    """One subject and what was drawn of it: `pictures[p]` are the pictures of prompt p, one per seed."""

    name: str
    word: str
    reference: Image.Image
    pictures: Sequence[Sequence[Image.Image]]
    identity: float | None = None


@dataclass(frozen=True)
class SubjectGrid:
    """Subjects down, prompts across."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    rows: Sequence[SubjectRow]


@dataclass(frozen=True)
class Swapped:
    """One subject's picture in a swap."""

    name: str
    reference: Image.Image
    picture: Image.Image


@dataclass(frozen=True)
class Swap:
    """One prompt and one seed: the prior's own picture, then the same with each subject."""

    prompt: str
    seed: int
    prior: Image.Image
    subjects: Sequence[Swapped]


@dataclass(frozen=True)
class RouterPicture:
    """A picture and where the router used the personalization expert (1 − R_0)."""

    caption: str
    picture: Image.Image
    weight: Float[np.ndarray, "h w"]
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """One stage of the run and what it took."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Command:
    """Something to type."""

    title: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class ReportData:
    """All that the page shows. Only the title is needed; an empty part is left out.

    comparison: the release beside production; others: beside any other model, with its name.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[Fact] = ()
    intake: Intake | None = None
    photos: Sequence[Photo] = ()
    refused: Sequence[RefusedPhoto] = ()
    curves: Sequence[Curve] = ()
    timeline: Sequence[StepPictures] = ()
    course: Course | None = None
    grid: SubjectGrid | None = None
    swaps: Sequence[Swap] = ()
    routers: Sequence[RouterPicture] = ()
    metrics: Metrics | None = None
    production: Metrics | None = None
    verdict: Verdict | None = None
    gallery: Gallery | None = None
    groups: Sequence[GroupTable] = ()
    comparison: Comparison | None = None
    others: Sequence[tuple[str, Comparison]] = ()
    lineage: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    commands: Sequence[Command] = ()
