"""A report with every section, of pictures of noise: enough to see the page work, made in a second."""

import numpy as np
from PIL import Image

from evaluation.comparison import Comparison, Difference
from evaluation.gallery import Gallery, Ranking, Shot
from evaluation.gate import Check, Verdict
from evaluation.groups import GroupTable
from evaluation.measures import Measure
from evaluation.metrics import BETTER, Metrics
from evaluation.protocol import Cell
from evaluation.report_data import (
    Command,
    Course,
    Curve,
    Fact,
    Intake,
    Photo,
    Refusal,
    RefusedPhoto,
    ReportData,
    RouterPicture,
    Stage,
    StepPictures,
    SubjectGrid,
    SubjectRow,
    Swap,
    Swapped,
)
from evaluation.worst_pictures import RankedPicture

EVIL = "<script>alert('x')</script>\"onerror="


def tile(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8))


def measure(value: float) -> Measure:
    return Measure(mean=value, std=0.1, low=value - 0.05, high=value + 0.05, samples=12)


METRICS = Metrics(
    pictures=12,
    subjects=3,
    identity=measure(0.51),
    prior_identity=measure(0.06),
    identity_gain=measure(0.45),
    background_change=measure(0.21),
)
VERDICT = Verdict(
    promote=False,
    reasons=["Identity gain is too small."],
    checks=[
        Check(name="a", value=0.2, limit=0.35, better="higher", passed=False, sentence="Identity gain is 0.2."),
        Check(name="b", value=None, limit=0.7, better="higher", passed=True, sentence="Objects do not apply."),
        Check(name="c", value=-0.1, limit=0.0, better="lower", passed=True, sentence="Below zero."),
    ],
)


PEOPLE = 4
SEEDS = (1, 2)
PROMPTS = (("on the beach", "context"), ("in the snow", "context"), ("holding roses", "accessory"))


def cells(name: str, caption: str) -> list[Cell]:
    """Four people, the first called `name`, by three prompts, the first `caption`, and two seeds; then two pairs."""
    names = [name, "b", "c", "d"]
    texts = [caption, *(f"a photo of a man {place}" for place, _ in PROMPTS[1:])]
    single = [
        Cell(subject=one, word="man", prompt=prompt, seed=seed, text=texts[prompt], group=PROMPTS[prompt][1])
        for prompt in range(len(PROMPTS))
        for seed in SEEDS
        for one in names
    ]
    pairs = [
        Cell(
            subject=first,
            word="man",
            partner=second,
            partner_word="woman",
            prompt=3,
            seed=seed,
            text="both",
            group="pairs",
        )
        for seed in SEEDS
        for first, second in ((name, "b"), ("c", "d"))
    ]
    return [*single, *pairs]


def gallery(name: str, caption: str) -> Gallery:
    """Identity rises from 0 in the order of the cells; in the first of everybody's pictures nobody is found."""
    shots = []
    for place, cell in enumerate(cells(name, caption)):
        start = "pair_" if cell.is_pair else ""
        values = {f"{start}identity": place / 30, f"{start}prompt_consistency": 0.5 - place / 100}
        shots.append(
            Shot(
                cell=cell,
                picture=tile(place),
                router=np.random.default_rng(place).random((8, 8)) if place != 1 else None,
                production=tile(100 + place) if place else None,
                values={**values, f"prior_{start}identity": 0.1},
                before=values,
                nobody=place < PEOPLE,
            )
        )
    priors = {shot.cell.prior: tile(200 + place) for place, shot in enumerate(shots)}
    ranked = [
        RankedPicture(
            measure="identity", value=shot.values["identity"], cell=shot.cell, note=caption if place < 1 else ""
        )
        for place, shot in enumerate(shots[:24])
    ]
    references = {one: tile(300 + place) for place, one in enumerate([name, "b", "c", "d"])}
    return Gallery(shots, priors, references, [Ranking("Identity", ranked[:10], ranked[:-11:-1])], len(shots), PEOPLE)


def differences() -> Comparison:
    """One measure that is better, one that is worse, one of which nothing can be said."""
    named = (("identity", "higher", 0.2), ("background_change", "lower", 0.2), ("variation", "higher", 0.01))
    return Comparison(
        pictures=28,
        differences=[
            Difference(measure=name, better=better, candidate=0.5, production=0.5 - by, difference=measure(by))
            for name, better, by in named
        ],
    )


def everything(name: str = "00007.png", caption: str = "a photo of a man on the beach") -> ReportData:
    return ReportData(
        title=name,
        subtitle=caption,
        facts=[Fact("photos", "12", name, True), Fact("time", "3 s")],
        intake=Intake(12, 10, [Refusal("duplicate", 2, caption, name)]),
        photos=[Photo(tile(0), caption, np.eye(64, dtype=np.uint8), truth=caption, note=name), Photo(tile(1), caption)],
        refused=[RefusedPhoto(name, "truncated", caption, tile(2)), RefusedPhoto(name, "empty_file", caption)],
        curves=[Curve(name, [1, 2, 3], [3.0, 2.0, 1.0], True, caption, marks=[2]), Curve("empty", [], [])],
        timeline=[StepPictures(100, tile(9)), StepPictures(12_000, tile(10))],
        course=Course(True, name, [caption, name], [{"attempt": "1", "by": name}, {"attempt": "2", "by": caption}]),
        grid=SubjectGrid(
            [caption, "b"], [1, 2], [SubjectRow(name, "man", tile(3), [[tile(4), tile(5)], [tile(6)]], 0.5)]
        ),
        swaps=[Swap(caption, 7, tile(7), [Swapped(name, tile(3), tile(8))])],
        routers=[RouterPicture(caption, tile(4), np.random.default_rng(0).random((8, 8)), name)],
        metrics=METRICS,
        production=METRICS,
        verdict=VERDICT,
        gallery=gallery(name, caption),
        groups=[
            GroupTable(group="accessory", prompts=1, pictures=8, measures={"identity": measure(0.1)}),
            GroupTable(group=caption, prompts=2, pictures=16, measures=dict.fromkeys(BETTER, measure(0.9))),
        ],
        comparison=differences(),
        others=[(caption, differences())],
        lineage={name: {caption: name}},
        stages=[Stage(name, 0.0, caption), Stage("train", 61.0)],
        commands=[Command(name, caption, name)],
    )
