"""From drawn pictures to numbers: every measure of the protocol, per subject, beside the prior's."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from jaxtyping import Float
from PIL import Image

from evaluation.disentanglement import background_difference, centre_blob, score_map
from evaluation.identity import embed_people, identity_similarity
from evaluation.measures import Measure, measure, measure_ratio
from evaluation.metrics import Metrics
from evaluation.people import Found, Locate, people_mask
from evaluation.prompt_consistency import PromptScorer, consistency, object_sentences, scene_sentences
from evaluation.protocol import Cell, Drawing, Drawings, Instruments, Subject
from evaluation.variation import variation
from infra.settings import EvaluateSettings

Column = dict[str, list[float]]
"""One measure's values by subject."""
# Ratio -> the columns that are divided, mean by mean.
RATIOS = {
    "scene_ratio": ("scene_accuracy", "prior_scene_accuracy"),
    "object_ratio": ("object_accuracy", "prior_object_accuracy"),
    "background_change": ("swap_difference", "seed_difference"),
}


def score(
    release: Drawings, prior: Drawings, subjects: Sequence[Subject], settings: EvaluateSettings, tools: Instruments
) -> Metrics:
    """Measure the pictures of one release beside the prior's; the intervals are over subjects.

    `release` and `prior` are what `protocol.draw_cells` drew.

    ValueError when `prior` lacks the picture of one of the release's cells.
    """
    columns = subject_columns(release, prior, subjects, settings, tools)
    values: dict[str, Measure | None] = {name: measure(column) for name, column in columns.items()}
    for name, (top, bottom) in RATIOS.items():
        if top in columns and bottom in columns:
            values[name] = measure_ratio(columns[top], columns[bottom])
    return Metrics(
        pictures=len(release),
        subjects=len(columns["identity"]),
        identity_by_subject={name: float(np.mean(scores)) for name, scores in columns["identity"].items()},
        **values,
    )


def subject_columns(
    release: Drawings, prior: Drawings, subjects: Sequence[Subject], settings: EvaluateSettings, tools: Instruments
) -> dict[str, Column]:
    """What `score` summarises: for each measure that is no ratio, the values of every subject's pictures.

    ValueError as in `score`.
    """
    missing = [cell for cell in release if cell.prior not in prior]
    if missing:
        raise ValueError(f"the prior's picture of '{missing[0].text}' with seed {missing[0].seed} was not drawn.")
    sheet = _Sheet.of(release, prior, subjects, tools)
    columns: dict[str, Column] = {}
    _identity(sheet, columns)
    _prompt(sheet, settings, tools.prompts, columns)
    _background(sheet, columns)
    _variation(sheet, columns)
    _router(sheet, columns)
    return columns


@dataclass(frozen=True)
class _Sheet:
    """All that is looked up once per picture: who is in it, and what identity and CLIP say of it."""

    cells: list[Cell]
    drawings: dict[Cell, Drawing]  # release and prior
    people: dict[Cell, Sequence[Found]]
    identities: dict[Cell, Float[np.ndarray, " D"]]
    clips: dict[Cell, Float[np.ndarray, " D"]]
    references: dict[str, Float[np.ndarray, " D"]]
    others: dict[str, Float[np.ndarray, "P D"]]

    @classmethod
    def of(cls, release: Drawings, prior: Drawings, subjects: Sequence[Subject], tools: Instruments) -> "_Sheet":
        ordered = sorted(release, key=lambda cell: (cell.subject or "", cell.prompt, cell.seed))
        drawings = {cell: release[cell] for cell in ordered}
        drawings |= {cell.prior: prior[cell.prior] for cell in ordered}
        pictures = [drawing.picture for drawing in drawings.values()]
        locate_face = tools.locate_face or tools.locate
        people = list(_in_batches(tools.locate, pictures))
        faces = people if tools.locate_face is None else list(_in_batches(locate_face, pictures))

        photos = [photo for subject in subjects for photo in (subject.reference, *subject.others)]
        # Unlike a drawing, a photo always shows its subject: where the detector fails, the whole photo is compared.
        shown = [
            found or [_everything(photo)] for photo, found in zip(photos, _in_batches(locate_face, photos), strict=True)
        ]
        photo_rows = iter(embed_people(photos, shown, tools.identity))
        rows = {subject.name: np.stack([next(photo_rows) for _ in (0, *subject.others)]) for subject in subjects}
        return cls(
            cells=ordered,
            drawings=drawings,
            people=dict(zip(drawings, people, strict=True)),
            identities=dict(zip(drawings, embed_people(pictures, faces, tools.identity), strict=True)),
            clips=dict(zip(drawings, tools.prompts.images(pictures), strict=True)),
            references={name: row[0] for name, row in rows.items()},
            others={name: row[1:] for name, row in rows.items()},
        )

    def per_subject(self, values: Sequence[float | None] | np.ndarray) -> Column:
        """One value per release cell, grouped by subject; `None` (does not apply) is left out."""
        grouped: Column = {}
        for cell, value in zip(self.cells, values, strict=True):
            if value is not None:
                grouped.setdefault(str(cell.subject), []).append(float(value))
        return grouped

    def difference(self, first: Cell, second: Cell) -> float | None:
        return background_difference(
            self.drawings[first].picture, self.drawings[second].picture, self.people[first], self.people[second]
        )

    def area(self, cell: Cell) -> float:
        found = self.people[cell]
        return float(found[0].region(self.drawings[cell].picture).mean()) if found else 0.0


def _identity(sheet: _Sheet, columns: dict[str, Column]) -> None:
    names = [str(cell.subject) for cell in sheet.cells]
    everyone = sorted(sheet.references)
    following = {name: everyone[(place + 1) % len(everyone)] for place, name in enumerate(everyone)}
    own = np.stack([sheet.references[name] for name in names])
    stranger = np.stack([sheet.references[following[name]] for name in names])
    drawn = np.stack([sheet.identities[cell] for cell in sheet.cells])
    by_prior = np.stack([sheet.identities[cell.prior] for cell in sheet.cells])

    release_N, prior_N = identity_similarity(drawn, own), identity_similarity(by_prior, own)
    columns["identity"] = sheet.per_subject(release_N)
    columns["prior_identity"] = sheet.per_subject(prior_N)
    columns["identity_gain"] = sheet.per_subject(release_N - prior_N)
    if len(everyone) > 1:
        columns["identity_other_person"] = sheet.per_subject(identity_similarity(drawn, stranger))
    columns["identity_real_photos"] = {
        name: identity_similarity(rows, np.repeat(sheet.references[name][None], len(rows), axis=0)).tolist()
        for name, rows in sheet.others.items()
        if len(rows)
    }
    columns["people_found"] = sheet.per_subject([float(bool(sheet.people[cell])) for cell in sheet.cells])
    columns["subject_area"] = sheet.per_subject([sheet.area(cell) for cell in sheet.cells])
    columns["prior_subject_area"] = sheet.per_subject([sheet.area(cell.prior) for cell in sheet.cells])


def _prompt(sheet: _Sheet, settings: EvaluateSettings, scorer: PromptScorer, columns: dict[str, Column]) -> None:
    sentences = list(dict.fromkeys(cell.text for cell in sheet.cells))
    texts = dict(zip(sentences, scorer.texts(sentences), strict=True))
    said = np.stack([texts[cell.text] for cell in sheet.cells])
    drawn = np.stack([sheet.clips[cell] for cell in sheet.cells])
    by_prior = np.stack([sheet.clips[cell.prior] for cell in sheet.cells])
    columns["prompt_consistency"] = sheet.per_subject(consistency(drawn, said))
    columns["prior_prompt_consistency"] = sheet.per_subject(consistency(by_prior, said))

    words = sorted({cell.word for cell in sheet.cells})
    scenes = list(dict.fromkeys(prompt.scene for prompt in settings.prompts if prompt.scene))
    objects = list(dict.fromkeys(prompt.object for prompt in settings.prompts if prompt.object))
    for kind, labels, described in (
        ("scene", scenes, scene_sentences(scenes, objects, words)),
        ("object", objects, object_sentences(scenes, objects, words)),
    ):
        if not labels:
            continue
        classify = scorer.classifier(described)
        wanted = [getattr(settings.prompts[cell.prompt], kind) for cell in sheet.cells]
        columns[f"{kind}_accuracy"] = sheet.per_subject(_agreement(wanted, classify(drawn)))
        columns[f"prior_{kind}_accuracy"] = sheet.per_subject(_agreement(wanted, classify(by_prior)))


def _agreement(wanted: Sequence[str], seen: Sequence[str]) -> list[float | None]:
    """1 or 0 where the prompt names something, `None` where it does not."""
    return [float(want == saw) if want else None for want, saw in zip(wanted, seen, strict=True)]


def _background(sheet: _Sheet, columns: dict[str, Column]) -> None:
    """Background change = difference under a subject swap ÷ difference between two seeds of the same subject.

    Only subjects of one class word are swapped: another word is another prompt, and the prior's scene changes with it.
    """
    swaps: Column = {}
    for group in _groups(sheet.cells, lambda cell: (cell.word, cell.prompt, cell.seed)):
        for first, second in combinations(group, 2):
            if (change := sheet.difference(first, second)) is not None:
                for cell in (first, second):
                    swaps.setdefault(str(cell.subject), []).append(change)
    seeds: Column = {}
    prior_seeds: Column = {}
    prior_differences: dict[tuple[Cell, Cell], float | None] = {}
    for group in _groups(sheet.cells, lambda cell: (cell.subject, cell.prompt)):
        for first, second in pairwise(group):
            name = str(first.subject)
            if (change := sheet.difference(first, second)) is not None:
                seeds.setdefault(name, []).append(change)
            pair = (first.prior, second.prior)
            if pair not in prior_differences:
                prior_differences[pair] = sheet.difference(*pair)
            if (change := prior_differences[pair]) is not None:
                prior_seeds.setdefault(name, []).append(change)
    columns["swap_difference"] = swaps
    columns["seed_difference"] = seeds
    columns["prior_fidelity"] = sheet.per_subject([sheet.difference(cell, cell.prior) for cell in sheet.cells])
    columns["prior_seed_difference"] = prior_seeds


def _variation(sheet: _Sheet, columns: dict[str, Column]) -> None:
    """How much the pictures of one subject and prompt differ between seeds, and how much the prior's do."""
    release: Column = {}
    prior: Column = {}
    for group in _groups(sheet.cells, lambda cell: (cell.subject, cell.prompt)):
        for column, drawn in ((release, group), (prior, [cell.prior for cell in group])):
            if (varied := variation(np.stack([sheet.clips[cell] for cell in drawn]))) is not None:
                column.setdefault(str(group[0].subject), []).append(varied)
    columns["variation"], columns["prior_variation"] = release, prior


def _router(sheet: _Sheet, columns: dict[str, Column]) -> None:
    """Router maps against the people of their own picture, beside a blob and another picture's map."""
    found: dict[str, Column] = {}
    mapped = [cell for cell in sheet.cells if sheet.drawings[cell].router is not None and sheet.people[cell]]
    for place, cell in enumerate(mapped):
        drawing = sheet.drawings[cell]
        mask_HW = people_mask(drawing.picture, sheet.people[cell])
        maps = {
            "": drawing.router,
            "_centre_blob": centre_blob(*mask_HW.shape),
            "_other_picture": sheet.drawings[mapped[(place + 1) % len(mapped)]].router,
        }
        for suffix, weight in maps.items():
            if weight is None or (scored := score_map(weight, mask_HW)) is None:
                continue
            for name in ("auc", "iou", "contrast"):
                column = found.setdefault(f"router_{name}{suffix}", {})
                column.setdefault(str(cell.subject), []).append(getattr(scored, name))
    wanted = [name for name in Metrics.model_fields if name.startswith("router_")]
    columns.update({name: found[name] for name in wanted if name in found})


def _groups(todo: Sequence[Cell], key: Callable[[Cell], Hashable]) -> list[list[Cell]]:
    grouped: dict[Hashable, list[Cell]] = {}
    for cell in todo:
        grouped.setdefault(key(cell), []).append(cell)
    return list(grouped.values())


def _in_batches(locate: Locate, pictures: Sequence[Image.Image], size: int = 16) -> Iterator[Sequence[Found]]:
    for start in range(0, len(pictures), size):
        yield from locate(pictures[start : start + size])


def _everything(photo: Image.Image) -> Found:
    return Found(box=(0.0, 0.0, float(photo.width), float(photo.height)))
