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
from infra.settings import EvaluateSettings


def score(
    release: Drawings, prior: Drawings, subjects: Sequence[Subject], settings: EvaluateSettings, tools: Instruments
) -> Metrics:
    """Measure the pictures of one release beside the prior's; the intervals are over subjects.

    `release` and `prior` are what `protocol.draw_cells` drew.

    ValueError when `prior` lacks the picture of one of the release's cells.
    """
    missing = [cell for cell in release if cell.prior not in prior]
    if missing:
        raise ValueError(f"the prior's picture of '{missing[0].text}' with seed {missing[0].seed} was not drawn.")
    sheet = _Sheet.of(release, prior, subjects, tools)
    values: dict[str, Measure | None] = {}
    by_subject = _identity(sheet, values)
    _prompt(sheet, settings, tools.prompts, values)
    _background(sheet, values)
    _router(sheet, values)
    return Metrics(
        pictures=len(sheet.cells),
        subjects=len({cell.subject for cell in sheet.cells}),
        identity_by_subject=by_subject,
        **values,
    )


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

    def per_subject(self, values: Sequence[float | None] | np.ndarray) -> dict[str, list[float]]:
        """One value per release cell, grouped by subject; `None` (does not apply) is left out."""
        grouped: dict[str, list[float]] = {}
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


def _identity(sheet: _Sheet, values: dict[str, Measure | None]) -> dict[str, float]:
    names = [str(cell.subject) for cell in sheet.cells]
    everyone = sorted(sheet.references)
    following = {name: everyone[(place + 1) % len(everyone)] for place, name in enumerate(everyone)}
    own = np.stack([sheet.references[name] for name in names])
    stranger = np.stack([sheet.references[following[name]] for name in names])
    drawn = np.stack([sheet.identities[cell] for cell in sheet.cells])
    by_prior = np.stack([sheet.identities[cell.prior] for cell in sheet.cells])

    release_N, prior_N = identity_similarity(drawn, own), identity_similarity(by_prior, own)
    by_subject = sheet.per_subject(release_N)
    values["identity"] = measure(by_subject)
    values["prior_identity"] = measure(sheet.per_subject(prior_N))
    values["identity_gain"] = measure(sheet.per_subject(release_N - prior_N))
    if len(everyone) > 1:
        values["identity_other_person"] = measure(sheet.per_subject(identity_similarity(drawn, stranger)))
    real = {
        name: identity_similarity(rows, np.repeat(sheet.references[name][None], len(rows), axis=0)).tolist()
        for name, rows in sheet.others.items()
        if len(rows)
    }
    values["identity_real_photos"] = measure(real)
    values["people_found"] = measure(sheet.per_subject([float(bool(sheet.people[cell])) for cell in sheet.cells]))
    values["subject_area"] = measure(sheet.per_subject([sheet.area(cell) for cell in sheet.cells]))
    values["prior_subject_area"] = measure(sheet.per_subject([sheet.area(cell.prior) for cell in sheet.cells]))
    return {name: float(np.mean(scores)) for name, scores in by_subject.items()}


def _prompt(sheet: _Sheet, settings: EvaluateSettings, scorer: PromptScorer, values: dict[str, Measure | None]) -> None:
    sentences = list(dict.fromkeys(cell.text for cell in sheet.cells))
    texts = dict(zip(sentences, scorer.texts(sentences), strict=True))
    said = np.stack([texts[cell.text] for cell in sheet.cells])
    drawn = np.stack([sheet.clips[cell] for cell in sheet.cells])
    by_prior = np.stack([sheet.clips[cell.prior] for cell in sheet.cells])
    values["prompt_consistency"] = measure(sheet.per_subject(consistency(drawn, said)))
    values["prior_prompt_consistency"] = measure(sheet.per_subject(consistency(by_prior, said)))

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
        right = sheet.per_subject(_agreement(wanted, classify(drawn)))
        prior_right = sheet.per_subject(_agreement(wanted, classify(by_prior)))
        values[f"{kind}_accuracy"] = measure(right)
        values[f"prior_{kind}_accuracy"] = measure(prior_right)
        values[f"{kind}_ratio"] = measure_ratio(right, prior_right)


def _agreement(wanted: Sequence[str], seen: Sequence[str]) -> list[float | None]:
    """1 or 0 where the prompt names something, `None` where it does not."""
    return [float(want == saw) if want else None for want, saw in zip(wanted, seen, strict=True)]


def _background(sheet: _Sheet, values: dict[str, Measure | None]) -> None:
    """Background change = difference under a subject swap ÷ difference between two seeds of the same subject.

    Only subjects of one class word are swapped: another word is another prompt, and the prior's scene changes with it.
    """
    swaps: dict[str, list[float]] = {}
    for group in _groups(sheet.cells, lambda cell: (cell.word, cell.prompt, cell.seed)):
        for first, second in combinations(group, 2):
            if (change := sheet.difference(first, second)) is not None:
                for cell in (first, second):
                    swaps.setdefault(str(cell.subject), []).append(change)
    seeds: dict[str, list[float]] = {}
    prior_seeds: dict[str, list[float]] = {}
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
    values["swap_difference"] = measure(swaps)
    values["seed_difference"] = measure(seeds)
    values["background_change"] = measure_ratio(swaps, seeds)
    values["prior_fidelity"] = measure(sheet.per_subject([sheet.difference(cell, cell.prior) for cell in sheet.cells]))
    values["prior_seed_difference"] = measure(prior_seeds)


def _router(sheet: _Sheet, values: dict[str, Measure | None]) -> None:
    """Router maps against the people of their own picture, beside a blob and another picture's map."""
    columns: dict[str, dict[str, list[float]]] = {}
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
                column = columns.setdefault(f"router_{name}{suffix}", {})
                column.setdefault(str(cell.subject), []).append(getattr(scored, name))
    wanted = [name for name in Metrics.model_fields if name.startswith("router_")]
    values.update({name: measure(columns[name]) for name in wanted if name in columns})


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
