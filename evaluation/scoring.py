"""From drawn pictures to numbers: every measure of the protocol, for every picture, beside the prior's."""

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations, pairwise

import numpy as np

from evaluation.identity import identity_similarity
from evaluation.instruments import Instruments
from evaluation.observations import Observations, Photographed
from evaluation.people import people_mask
from evaluation.perceptual import PerceptualDistance
from evaluation.prompt_consistency import PromptScorer, consistency, object_sentences, scene_sentences
from evaluation.protocol import Cell, Drawings
from evaluation.router_maps import centre_blob, score_map
from evaluation.scores import Column, Scores
from evaluation.subject_mixing import subject_mixing
from evaluation.variation import variation
from infra.evaluation_settings import EvaluateSettings

Values = dict[str, dict[Cell, float]]
"""Measure → the value of each picture to which it applies."""


def score_pictures(
    release: Drawings, prior: Drawings, photos: Photographed, settings: EvaluateSettings, tools: Instruments
) -> Scores:
    """Measure every picture of one release beside the prior's of the same prompt and seed.

    `release` and `prior` are what `protocol.draw_cells` drew, `photos` what `observations.photographed` saw. The
    pictures of one prompt belong together, and those of two do not: an evaluation can be measured prompt by prompt,
    anywhere, and `Scores.joined`.

    ValueError when `prior` lacks the picture of one of the release's cells.
    """
    missing = [cell for cell in release if cell.prior not in prior]
    if missing:
        raise ValueError(f"the prior's picture of '{missing[0].text}' with seed {missing[0].seed} was not drawn.")
    seen = Observations.of(release, prior, photos, tools)
    alone = [cell for cell in seen.cells if not cell.is_pair]
    together = [cell for cell in seen.cells if cell.is_pair]
    values: Values = {}
    if alone:
        _identity(seen, alone, values)
        _prompt(seen, alone, settings, tools.prompts, values)
        _background(seen, alone, values)
        _variation(seen, alone, tools.perceptual, values)
        for group in _groups(alone, lambda cell: cell.prompt):
            _router(seen, group, values)
    if together:
        _pairs(seen, together, tools.prompts, values)
    if tools.safety is not None:
        flagged = tools.safety.flagged([seen.drawings[cell].picture for cell in seen.cells])
        values["flagged"] = {cell: float(one) for cell, one in zip(seen.cells, flagged, strict=True)}
    return Scores(seen.cells, {name: [column.get(cell) for cell in seen.cells] for name, column in values.items()})


def real_photos(photos: Photographed) -> Column:
    """By subject, the similarity of each of their other photos to the reference: what can be reached."""
    return {
        name: identity_similarity(rows[1:], np.repeat(rows[:1], len(rows) - 1, axis=0)).tolist()
        for name, rows in photos.items()
        if len(rows) > 1
    }


def _identity(seen: Observations, cells: Sequence[Cell], values: Values) -> None:
    everyone = sorted(seen.references)
    following = {name: everyone[(place + 1) % len(everyone)] for place, name in enumerate(everyone)}
    own = np.stack([seen.references[str(cell.subject)] for cell in cells])
    stranger = np.stack([seen.references[following[str(cell.subject)]] for cell in cells])
    drawn, by_prior = seen.first_people(cells), seen.first_people([cell.prior for cell in cells])

    release_N, prior_N = identity_similarity(drawn, own), identity_similarity(by_prior, own)
    values["identity"] = _by_cell(cells, release_N)
    values["prior_identity"] = _by_cell(cells, prior_N)
    values["identity_gain"] = _by_cell(cells, release_N - prior_N)
    if len(everyone) > 1:
        values["identity_other_person"] = _by_cell(cells, identity_similarity(drawn, stranger))
    values["face_found"] = {cell: float(len(seen.identities[cell]) > 0) for cell in cells}
    values["people_found"] = {cell: float(len(seen.people[cell]) > 0) for cell in cells}
    values["subject_area"] = {cell: seen.area(cell) for cell in cells}
    values["prior_subject_area"] = {cell: seen.area(cell.prior) for cell in cells}


def _prompt(
    seen: Observations, cells: Sequence[Cell], settings: EvaluateSettings, scorer: PromptScorer, values: Values
) -> None:
    drawn, by_prior = _consistency(seen, cells, scorer, values, "prompt_consistency")
    words = sorted({cell.word for cell in cells})
    scenes = list(dict.fromkeys(prompt.scene for prompt in settings.prompts if prompt.scene))
    objects = list(dict.fromkeys(prompt.object for prompt in settings.prompts if prompt.object))
    for kind, labels, described in (
        ("scene", scenes, scene_sentences(scenes, objects, words)),
        ("object", objects, object_sentences(scenes, objects, words)),
    ):
        if not labels:
            continue
        classify = scorer.classifier(described)
        wanted = [getattr(settings.prompts[cell.prompt], kind) for cell in cells]
        for name, pictures in ((f"{kind}_accuracy", drawn), (f"prior_{kind}_accuracy", by_prior)):
            answers = zip(cells, wanted, classify(pictures), strict=True)
            # Only prompts that name something count.
            values[name] = {cell: float(want == saw) for cell, want, saw in answers if want}


def _consistency(
    seen: Observations, cells: Sequence[Cell], scorer: PromptScorer, values: Values, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Fill in the cosines of release and prior; returns the pictures' embeddings."""
    sentences = list(dict.fromkeys(cell.text for cell in cells))
    texts = dict(zip(sentences, scorer.texts(sentences), strict=True))
    said = np.stack([texts[cell.text] for cell in cells])
    drawn = np.stack([seen.clips[cell] for cell in cells])
    by_prior = np.stack([seen.clips[cell.prior] for cell in cells])
    values[name] = _by_cell(cells, consistency(drawn, said))
    values[f"prior_{name}"] = _by_cell(cells, consistency(by_prior, said))
    return drawn, by_prior


def _background(seen: Observations, cells: Sequence[Cell], values: Values) -> None:
    """Background change = difference under a subject swap ÷ difference between two seeds of the same subject.

    A picture's swap difference is the mean over the other subjects of its class word: another word is another prompt,
    and the prior's scene changes with it. Its seed difference is to the next seed's picture; the last seed's has none.
    """
    swaps: dict[Cell, list[float]] = {}
    for group in _groups(cells, lambda cell: (cell.word, cell.prompt, cell.seed)):
        for first, second in combinations(group, 2):
            if (change := seen.difference(first, second)) is not None:
                swaps.setdefault(first, []).append(change)
                swaps.setdefault(second, []).append(change)
    seeds: dict[Cell, float] = {}
    prior_seeds: dict[Cell, float] = {}
    of_prior: dict[tuple[Cell, Cell], float | None] = {}
    for group in _groups(cells, lambda cell: (cell.subject, cell.prompt)):
        for first, second in pairwise(group):
            if (change := seen.difference(first, second)) is not None:
                seeds[first] = change
            pair = (first.prior, second.prior)
            if pair not in of_prior:
                of_prior[pair] = seen.difference(*pair)
            if (change := of_prior[pair]) is not None:
                prior_seeds[first] = change
    values["swap_difference"] = {cell: float(np.mean(changes)) for cell, changes in swaps.items()}
    values["seed_difference"], values["prior_seed_difference"] = seeds, prior_seeds
    values["prior_fidelity"] = _to_prior(seen, cells)


def _to_prior(seen: Observations, cells: Sequence[Cell]) -> dict[Cell, float]:
    changes = {cell: seen.difference(cell, cell.prior) for cell in cells}
    return {cell: change for cell, change in changes.items() if change is not None}


def _variation(seen: Observations, cells: Sequence[Cell], perceptual: PerceptualDistance, values: Values) -> None:
    """How much the pictures of one subject and prompt differ between seeds, and how much the prior's do."""
    varied: dict[Cell, float] = {}
    for of in (cells, list(dict.fromkeys(cell.prior for cell in cells))):
        for group in _groups(of, lambda cell: (cell.subject, cell.word, cell.prompt)):
            found = variation(perceptual.distances([seen.drawings[cell].picture for cell in group]))
            if found is not None:
                varied |= _by_cell(group, found)
    values["variation"] = {cell: varied[cell] for cell in cells if cell in varied}
    values["prior_variation"] = {cell: varied[cell.prior] for cell in cells if cell.prior in varied}


def _router(seen: Observations, cells: Sequence[Cell], values: Values) -> None:
    """Router maps against the people of their own picture, beside a blob and the map of the next one of the prompt."""
    mapped = [cell for cell in cells if seen.drawings[cell].router is not None and seen.people[cell]]
    for place, cell in enumerate(mapped):
        drawing = seen.drawings[cell]
        mask_HW = people_mask(drawing.picture, seen.people[cell])
        maps = {
            "": drawing.router,
            "_centre_blob": centre_blob(*mask_HW.shape),
            "_other_picture": seen.drawings[mapped[(place + 1) % len(mapped)]].router,
        }
        for suffix, weight in maps.items():
            if weight is None or (scored := score_map(weight, mask_HW)) is None:
                continue
            for name in ("auc", "iou", "contrast"):
                values.setdefault(f"router_{name}{suffix}", {})[cell] = getattr(scored, name)


def _pairs(seen: Observations, cells: Sequence[Cell], scorer: PromptScorer, values: Values) -> None:
    """Two people in one picture: are they there, who is who, and is the rest the prior's?"""
    _consistency(seen, cells, scorer, values, "pair_prompt_consistency")
    values["pair_prior_fidelity"] = _to_prior(seen, cells)
    values["pair_people_found"] = {cell: float(len(seen.identities[cell]) == 2) for cell in cells}
    for cell in cells:
        references = np.stack([seen.references[name] for name in cell.names])
        for prefix, drawn in (("", cell), ("prior_", cell.prior)):
            mixing = subject_mixing(seen.identities[drawn], references)
            values.setdefault(f"{prefix}pair_identity", {})[cell] = mixing.minimum_identity
            if mixing.separation is not None:
                values.setdefault(f"{prefix}pair_separation", {})[cell] = mixing.separation


def _by_cell(cells: Sequence[Cell], numbers: np.ndarray) -> dict[Cell, float]:
    return {cell: float(number) for cell, number in zip(cells, numbers, strict=True)}


def _groups(todo: Sequence[Cell], key: Callable[[Cell], Hashable]) -> list[list[Cell]]:
    grouped: dict[Hashable, list[Cell]] = {}
    for cell in todo:
        grouped.setdefault(key(cell), []).append(cell)
    return list(grouped.values())
