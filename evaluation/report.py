"""The report: one self-contained HTML page that shows a run to somebody who was not there.

`render` takes plain data (`ReportData`) and returns the page. Every section whose data is empty is left out. Captions,
file names and reasons come from strangers' files: the template escapes all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from evaluation import charts
from evaluation.gate import Verdict
from evaluation.measures import Measure
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
    """All that the page shows. Only the title is needed; an empty part is left out."""

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
    lineage: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    stages: Sequence[Stage] = ()
    commands: Sequence[Command] = ()


@dataclass(frozen=True)
class MetricRow:
    """A line of the metrics table."""

    label: str
    note: str
    better: Literal["higher", "lower", ""]
    release: str
    interval: str
    spread: str
    prior: str
    production: str


# Label, explanation, better direction, the release's field, the prior's field, format.
_ROWS: tuple[tuple[str, str, Literal["higher", "lower", ""], str, str, str], ...] = (
    (
        "Identity",
        "similarity to the reference photo; 0 where nobody is found",
        "higher",
        "identity",
        "prior_identity",
        "{:.3f}",
    ),
    ("Identity gain", "release minus prior, same prompt and seed", "higher", "identity_gain", "", "{:+.3f}"),
    (
        "Identity of a stranger",
        "the same pictures against another subject's photo",
        "lower",
        "identity_other_person",
        "",
        "{:.3f}",
    ),
    (
        "Identity of real photos",
        "two photos of one person: what can be reached",
        "",
        "identity_real_photos",
        "",
        "{:.3f}",
    ),
    ("People found", "pictures in which somebody is found", "higher", "people_found", "", "{:.1%}"),
    ("Faces to compare", "the others score no identity", "higher", "face_found", "", "{:.1%}"),
    (
        "Subject area",
        "share of the picture; small subjects score lower identity",
        "",
        "subject_area",
        "prior_subject_area",
        "{:.1%}",
    ),
    (
        "Prompt consistency",
        "CLIP cosine of picture and prompt",
        "higher",
        "prompt_consistency",
        "prior_prompt_consistency",
        "{:.3f}",
    ),
    (
        "Scene accuracy",
        "zero-shot CLIP over the prompts' scenes",
        "higher",
        "scene_accuracy",
        "prior_scene_accuracy",
        "{:.1%}",
    ),
    ("Scene accuracy ÷ prior's", "", "higher", "scene_ratio", "", "{:.3f}"),
    (
        "Held-object accuracy",
        "zero-shot CLIP over the objects and empty hands",
        "higher",
        "object_accuracy",
        "prior_object_accuracy",
        "{:.1%}",
    ),
    ("Held-object accuracy ÷ prior's", "", "higher", "object_ratio", "", "{:.3f}"),
    ("Background change", "outside people: swapped subject ÷ another seed", "lower", "background_change", "", "{:.3f}"),
    ("… under a subject swap", "grey levels (0-255), same prompt and seed", "lower", "swap_difference", "", "{:.1f}"),
    (
        "… under another seed",
        "grey levels, same subject and prompt",
        "",
        "seed_difference",
        "prior_seed_difference",
        "{:.1f}",
    ),
    (
        "Distance to the prior's picture",
        "grey levels outside people, same prompt and seed",
        "lower",
        "prior_fidelity",
        "",
        "{:.1f}",
    ),
    ("Variation", "between seeds of one subject and prompt", "higher", "variation", "prior_variation", "{:.3f}"),
    ("Router AUC", "map against the person's mask", "higher", "router_auc", "", "{:.3f}"),
    ("… of a plain centre blob", "what a map that knows nothing gets", "", "router_auc_centre_blob", "", "{:.3f}"),
    ("… of another picture's map", "", "", "router_auc_other_picture", "", "{:.3f}"),
    ("Router IoU", "the map's strongest pixels, as many as the mask has", "higher", "router_iou", "", "{:.3f}"),
    ("… of a plain centre blob", "", "", "router_iou_centre_blob", "", "{:.3f}"),
    ("Router contrast", "mean weight inside minus outside", "higher", "router_contrast", "", "{:.3f}"),
    ("Pairs: identity", "of the worse of the two", "higher", "pair_identity", "prior_pair_identity", "{:.3f}"),
    (
        "Pairs: separation",
        "right minus wrong reference",
        "higher",
        "pair_separation",
        "prior_pair_separation",
        "{:.3f}",
    ),
    ("Pairs: both found", "", "higher", "pair_people_found", "", "{:.1%}"),
    ("… prompt", "CLIP cosine", "higher", "pair_prompt_consistency", "prior_pair_prompt_consistency", "{:.3f}"),
    ("… distance to the prior's picture", "grey levels", "lower", "pair_prior_fidelity", "", "{:.1f}"),
)


def metric_rows(metrics: Metrics, production: Metrics | None = None) -> list[MetricRow]:
    """The table's lines: what was measured, in reading order; unmeasured lines are left out."""
    rows = []
    for label, note, better, name, prior_name, form in _ROWS:
        measured: Measure | None = getattr(metrics, name)
        if measured is None:
            continue
        prior = getattr(metrics, prior_name) if prior_name else None
        before = getattr(production, name) if production else None
        rows.append(
            MetricRow(
                label=label,
                note=f"{note}: {metrics.perceptual_distance}" if name == "variation" else note,
                better=better,
                release=form.format(measured.mean),
                interval=f"{form.format(measured.low)} – {form.format(measured.high)}",
                spread=form.format(measured.std).lstrip("+") if measured.std else "",
                prior=form.format(prior.mean) if prior else "",
                production=form.format(before.mean) if before else "",
            )
        )
    return rows


def render(data: ReportData) -> str:
    """The whole page as HTML text, pictures included; it needs no other file and runs no script."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"address": charts.data_address, "duration": charts.duration, "short": charts.short}
    return environment.get_template("report.html.j2").render(
        data=data,
        rows=metric_rows(data.metrics, data.production) if data.metrics else [],
        lines=[(curve, charts.draw_line(curve.steps, curve.values, curve.log, curve.marks)) for curve in data.curves],
        overlay=charts.overlay,
        heat_map=charts.heat_map,
        paper=charts.PAPER,
        hero=_hero(data),
        slowest=max((stage.seconds for stage in data.stages), default=0.0) or 1.0,
    )


def _hero(data: ReportData) -> list[Image.Image]:
    """A few pictures for the head of the page: drawn ones if there are any, photos otherwise."""
    drawn = [
        picture for row in (data.grid.rows if data.grid else ()) for group in row.pictures for picture in group[:1]
    ]
    if drawn:
        # A diagonal through the table shows different people in different scenes.
        across = len(data.grid.prompts) if data.grid else 1
        places = dict.fromkeys(place * (across + 1) % len(drawn) for place in range(5))
        return [drawn[place] for place in places]
    return [photo.picture for photo in data.photos[:5]]
