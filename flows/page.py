"""The report's page, from what a run left in the store: it can be made again at any time."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from evaluation.comparison import Comparison, compare
from evaluation.gallery import choose, gather
from evaluation.gate import Verdict
from evaluation.groups import group_tables
from evaluation.metrics import Metrics
from evaluation.protocol import Cell, Drawing
from evaluation.report import render
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
from evaluation.scores import Scores
from flows.contenders import evaluated_models, released
from flows.evaluate import people_fingerprint
from flows.evaluation_people import read_people
from flows.evaluation_pictures import read_pictures
from flows.evaluation_scores import is_measured, read_scores
from flows.painting import from_png
from flows.run import Run
from flows.samples import training_examples
from flows.summary import pull_command, where_options
from flows.train import finished_training
from flows.training_continuity import continuity, told_course
from flows.training_job import picture_folder, picture_step
from infra.errors import UserError
from infra.registry import Release
from preprocessing.photos import PhotoRefused, Reason, decode, read_bytes
from preprocessing.places import Place
from preprocessing.trees import is_picture

_SUBJECTS, _SEEDS, _PROMPTS, _EXAMPLES, _ROUTERS, _GRIDS = 8, 2, 6, 12, 6, 4


def write_report(run: Run, summary: dict[str, Any]) -> Path:
    """Write report.html into the workspace."""
    path = run.settings.workspace / "report.html"
    path.write_text(render(report_data(run, summary)), "utf-8")
    return path


def report_data(run: Run, summary: dict[str, Any]) -> ReportData:
    """Everything on the page."""
    release = run.releases.resolve(str(summary["release"]["number"]))
    card = run.releases.card(release)
    people = read_people(run)
    if card["evaluation"] != people_fingerprint(run, people):
        raise UserError(f"Release {release.number} was evaluated with other settings: use those, or run moa evaluate.")
    folder = _evaluated_folder(run, release, card["evaluation"])
    if not folder:
        raise UserError(f"Release {release.number} was evaluated by an earlier version or elsewhere: run moa evaluate.")
    scores = read_scores(run, folder)
    chosen = choose(scores)
    prompts = _prompts(run)
    shown = {one for cell in chosen for one in (cell, cell.prior)}
    drawn = read_pictures(run, folder, lambda cell: cell in shown or not cell.is_pair and cell.prompt in prompts)
    drawings = {cell: Drawing(picture, router) for cell, picture, router in drawn}
    references = {one["name"]: from_png(one["photos"][0]) for one in people}
    metrics = Metrics.model_validate(card["metrics"])
    finished = finished_training(run, card["run_id"])
    told = continuity(run.store, card["run_id"], finished)
    compared = card["compared_with"]
    production, before = None, None
    if compared is not None:
        old = run.releases.resolve(str(compared))
        production = Metrics.model_validate(run.releases.card(old)["metrics"])
        before = _before(run, _evaluated_folder(run, old, card["evaluation"]), set(chosen))
    return ReportData(
        title=f"MoA: release {release.number}",
        subtitle=f"{card['samples']} photos trained on, {metrics.subjects} people drawn who are in none of them",
        facts=_facts(summary, metrics),
        intake=_intake(run, summary),
        photos=_photos(run),
        refused=_refused(run),
        curves=_curves(finished),
        timeline=_timeline(run, card["run_id"]),
        course=None if told is None else Course(told.whole, told.headline, told.sentences, told.attempts),
        gallery=gather(scores, chosen, drawings, references, before),
        groups=group_tables(scores),
        comparison=Comparison.model_validate(card["comparison"]) if card.get("comparison") else None,
        others=[
            (name, compare(scores, read_scores(run, theirs)))
            for name, theirs in evaluated_models(run, card["evaluation"])
        ],
        grid=_grid(run, people, drawn, metrics),
        swaps=_swaps(run, people, drawn),
        routers=_routers(drawn),
        metrics=metrics,
        production=production,
        verdict=Verdict.model_validate(card["verdict"]),
        lineage=_lineage(card),
        stages=[Stage(one["stage"], one["seconds"], one["note"]) for one in summary["stages"]],
        commands=_commands(run, summary),
    )


def _evaluated_folder(run: Run, release: Release, protocol: str) -> str:
    """The folder in which a release was measured under this protocol, then or later; "" where none is here."""
    folder = released(run.releases, release).folder(run, protocol)
    return folder if is_measured(run, folder) else ""


def _before(run: Run, folder: str, chosen: set[Cell]) -> tuple[Scores, dict[Cell, Drawing]] | None:
    """What the release in production was measured with then; None where its pictures are not in this store."""
    if not folder:
        return None
    drawn = read_pictures(run, folder, chosen.__contains__)
    pictures = {cell: Drawing(picture, router) for cell, picture, router in drawn}
    return read_scores(run, folder), pictures


def _prompts(run: Run) -> list[int]:
    """The prompts whose pictures stand in tables: a few of them, from first to last."""
    count = len(run.settings.evaluate.prompts)
    return [place * count // min(count, _PROMPTS) for place in range(min(count, _PROMPTS))]


def _facts(summary: dict[str, Any], metrics: Metrics) -> list[Fact]:
    limits = {check["name"]: check for check in summary["verdict"]["checks"]}

    def passed(start: str) -> bool | None:
        return next((check["passed"] for name, check in limits.items() if name.startswith(start)), None)

    facts = []
    if metrics.identity_gain:
        gain = f"{metrics.identity_gain.mean:+.2f}"
        facts.append(Fact("identity over the prior", gain, "unseen people", passed("identity gain")))
    if metrics.scene_ratio:
        facts.append(Fact("scene accuracy", f"{metrics.scene_ratio.mean:.2f}", "of the prior's", passed("scene")))
    if metrics.object_ratio:
        facts.append(Fact("held objects", f"{metrics.object_ratio.mean:.2f}", "of the prior's", passed("held-object")))
    if metrics.background_change:
        value = f"{metrics.background_change.mean:.2f}"
        facts.append(Fact("background change", value, "of another seed's", passed("background")))
    if summary["truth"]:
        facts.append(Fact("captions exact", f"{summary['truth']['caption_exact']:.1%}"))
        facts.append(Fact("mask IoU", f"{summary['truth']['mask_iou']:.3f}"))
    return facts


def _intake(run: Run, summary: dict[str, Any]) -> Intake:
    examples: dict[str, str] = {}
    for row in run.catalog.photos():
        if row.status == "refused":
            examples.setdefault(row.reason, f"{row.origin}: {row.detail}")
    photos = summary["photos"]
    refusals = [
        Refusal(reason, count, Reason(reason).sentence, examples.get(reason, ""))
        for reason, count in photos["refused"].items()
    ]
    return Intake(photos["in"], photos["kept"], refusals)


def _photos(run: Run) -> list[Photo]:
    return [
        Photo(example.picture, example.caption, example.instances, note=example.origin)
        for example in training_examples(run, _EXAMPLES)
    ]


def _refused(run: Run) -> list[RefusedPhoto]:
    """One photo per reason, with its picture where a lenient look shows one."""
    try:
        records = run.open_source(run.settings.ingest.source).records()
        paths = {r.origin: r.path for r in records if not isinstance(r.path, Path) or is_picture(r.path.name)}
    except UserError:  # the photos are gone; the catalog still knows why they were refused
        paths = {}
    shown: dict[str, RefusedPhoto] = {}
    for row in run.catalog.photos():
        if row.status != "refused" or row.reason in shown:
            continue
        path = paths.get(row.origin)
        picture = None if path is None else _look(path)
        shown[row.reason] = RefusedPhoto(row.origin, row.reason, row.detail or Reason(row.reason).sentence, picture)
    return list(shown.values())


def _look(path: Place) -> Image.Image | None:
    try:
        picture = decode(read_bytes(path), 1, 4_000_000)
    except PhotoRefused:
        return None
    picture.thumbnail((256, 256))
    return picture


def _curves(finished: dict[str, Any]) -> list[Curve]:
    rows = finished["curve"]
    steps = [row["step"] for row in rows]
    names = {
        "loss": "total",
        "masked": "masked, on people",
        "router": "router",
        "object": "object",
        "preservation": "background, from the prior's",
        "gradient_norm": "gradient norm",
        "router_share": "the experts' share",
    }
    notes = {"gradient_norm": "before clipping", "router_share": "mean R₁ over layers and pixels"}
    marks = [start["step"] for start in finished.get("starts", []) if start["step"]]
    return [
        Curve(title, steps, [row[name] for row in rows], note=notes.get(name, ""), marks=marks)
        for name, title in names.items()
        if any(row.get(name) for row in rows)
    ]


def _timeline(run: Run, run_id: str) -> list[StepPictures]:
    """A few of the grids that were drawn on the way, the last one among them."""
    keys = run.store.list(picture_folder(run_id))
    count = min(_GRIDS, len(keys))
    chosen = [keys[(turn + 1) * len(keys) // count - 1] for turn in range(count)]
    return [StepPictures(picture_step(key), from_png(run.store.get(key))) for key in chosen]


def _grid(run: Run, people: Sequence[dict[str, Any]], drawn: Any, metrics: Metrics) -> SubjectGrid:
    settings = run.settings.evaluate
    seeds, prompts = settings.seeds[:_SEEDS], _prompts(run)
    pictures = {(cell.subject, cell.prompt, cell.seed): picture for cell, picture, _ in drawn}
    rows = [
        SubjectRow(
            one["name"],
            one["word"],
            from_png(one["photos"][0]),
            [[pictures[one["name"], prompt, seed] for seed in seeds] for prompt in prompts],
            metrics.identity_by_subject.get(one["name"]),
        )
        for one in people[:_SUBJECTS]
    ]
    return SubjectGrid([settings.prompts[prompt].template.format(word="…") for prompt in prompts], seeds, rows)


def _swaps(run: Run, people: Sequence[dict[str, Any]], drawn: Any) -> list[Swap]:
    """For the first seed and each prompt: the prior's picture and the same with several people of one word."""
    settings = run.settings.evaluate
    pictures = {(cell.subject, cell.word, cell.prompt, cell.seed): picture for cell, picture, _ in drawn}
    swaps = []
    for prompt in _prompts(run):
        words = sorted({one["word"] for one in people})
        word = words[prompt % len(words)]
        alike = [one for one in people if one["word"] == word][:5]
        seed = settings.seeds[prompt % len(settings.seeds)]
        swapped = [
            Swapped(one["name"], from_png(one["photos"][0]), pictures[one["name"], word, prompt, seed]) for one in alike
        ]
        prior = pictures[None, word, prompt, seed]
        swaps.append(Swap(settings.prompts[prompt].template.format(word=word), seed, prior, swapped))
    return swaps


def _routers(drawn: Any) -> list[RouterPicture]:
    mapped = [(cell, picture, router) for cell, picture, router in drawn if router is not None]
    step = max(len(mapped) // _ROUTERS, 1)
    return [
        RouterPicture(cell.text, picture, router.astype("float32"), f"{' and '.join(cell.names)}, seed {cell.seed}")
        for cell, picture, router in mapped[::step][:_ROUTERS]
    ]


def _lineage(card: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {
        "data": {
            "catalog version": str(card["catalog_version"]),
            "catalog digest": card["catalog_digest"],
            "samples": str(card["samples"]),
            **{f"{stage} fingerprint": value for stage, value in card["stages"].items()},
        },
        "models": dict(card["models"]),
        "training": {
            "run": card["run_id"],
            "started from": card["start"],
            **_course(card),
            **{name: str(value) for name, value in card["train"].items()},
        },
    }


def _course(card: dict[str, Any]) -> dict[str, str]:
    """What is left out; the samples' turns have a section of their own."""
    told = told_course(card["course"]) if "course" in card else {}
    return {name: value for name, value in told.items() if name != "samples"}


def _commands(run: Run, summary: dict[str, Any]) -> list[Command]:
    name = run.settings.publish.alias if summary["production"] else str(summary["release"]["number"])
    where = shlex.join(where_options(run.settings))
    prompt = run.settings.evaluate.prompts[0].template.format(word="man")
    return [
        Command("Pull the checkpoint", pull_command(run.settings, name), "every file is verified before it appears"),
        Command("Draw", f'moa generate --subject a.png --prompt "{prompt}" --seed 7 --out x.png {where}'.strip()),
        Command("Add photos", f"moa demo --more 200 {where}".strip(), "only the new shards are processed"),
    ]
