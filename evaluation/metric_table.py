"""The measures as lines of tables: what each is called, how it is written, and which way is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.comparison import Comparison, Difference
from evaluation.groups import GroupTable
from evaluation.measures import Measure
from evaluation.metrics import Metrics


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


@dataclass(frozen=True)
class GroupRow:
    """A line of the table of prompt groups: a number and its interval for each of the table's columns, or nothing."""

    group: str
    prompts: int
    pictures: int
    cells: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class DifferenceRow:
    """A line of the table beside production: both, the paired difference with its interval, and what that means."""

    label: str
    better: Literal["higher", "lower"]
    candidate: str
    production: str
    difference: str
    interval: str
    meaning: Literal["better", "worse", "the same", "no more than chance"]


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
    (
        "Change under a subject swap",
        "grey levels (0-255) outside people, same prompt and seed",
        "lower",
        "swap_difference",
        "",
        "{:.1f}",
    ),
    (
        "Change under another seed",
        "grey levels outside people, same subject and prompt",
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
    ("Router AUC of a centre blob", "what a map that knows nothing gets", "", "router_auc_centre_blob", "", "{:.3f}"),
    ("Router AUC of another picture's map", "", "", "router_auc_other_picture", "", "{:.3f}"),
    ("Router IoU", "the map's strongest pixels, as many as the mask has", "higher", "router_iou", "", "{:.3f}"),
    ("Router IoU of a centre blob", "", "", "router_iou_centre_blob", "", "{:.3f}"),
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
    (
        "Pairs: prompt consistency",
        "CLIP cosine",
        "higher",
        "pair_prompt_consistency",
        "prior_pair_prompt_consistency",
        "{:.3f}",
    ),
    ("Pairs: distance to the prior's picture", "grey levels", "lower", "pair_prior_fidelity", "", "{:.1f}"),
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


# A page's width: the prior's own numbers and the ratios are in the table of all pictures.
_OF_GROUPS = (
    "identity",
    "identity_gain",
    "prompt_consistency",
    "scene_accuracy",
    "object_accuracy",
    "background_change",
    "prior_fidelity",
    "variation",
    "router_iou",
    "pair_identity",
    "pair_separation",
    "pair_prompt_consistency",
)


def group_rows(tables: Sequence[GroupTable]) -> tuple[list[str], list[GroupRow]]:
    """The columns' titles, and a line for each group of prompts; what no group has is no column."""
    named = {name: (label, form) for label, _, _, name, _, form in _ROWS if name in _OF_GROUPS}
    columns = [name for name in named if any(name in table.measures for table in tables)]
    rows = [
        GroupRow(
            table.group or "all",
            table.prompts,
            table.pictures,
            [_number_and_interval(table.measures.get(name), named[name][1]) for name in columns],
        )
        for table in tables
    ]
    return [named[name][0] for name in columns], rows


def difference_rows(comparison: Comparison) -> list[DifferenceRow]:
    """Every measure that both releases have, in reading order."""
    rows = []
    for label, _, _, name, _, form in _ROWS:
        found = comparison.of(name)
        if found is None:
            continue
        signed = form.replace("{:", "{:+").replace("{:++", "{:+")
        between = found.difference
        rows.append(
            DifferenceRow(
                label=label,
                better=found.better,
                candidate=form.format(found.candidate),
                production=form.format(found.production),
                difference=signed.format(between.mean),
                interval=f"{signed.format(between.low)} – {signed.format(between.high)}",
                meaning=_meaning(found),
            )
        )
    return rows


def _meaning(found: Difference) -> Literal["better", "worse", "the same", "no more than chance"]:
    between = found.difference
    if between.low == between.high == 0:
        return "the same"
    if between.low <= 0 <= between.high:
        return "no more than chance"
    return "worse" if found.is_worse else "better"


def _number_and_interval(found: Measure | None, form: str) -> tuple[str, str]:
    if found is None:
        return "", ""
    return form.format(found.mean), f"{form.format(found.low)} – {form.format(found.high)}"
