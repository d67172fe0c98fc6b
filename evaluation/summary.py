"""From every picture's values to a release's numbers, each with its spread and its interval over people."""

import numpy as np

from evaluation.instruments import About
from evaluation.measures import Measure, measure, measure_pairs, measure_ratio
from evaluation.metrics import RATIOS, Metrics
from evaluation.scores import Column, Scores


def summarise(scores: Scores, real_photos: Column, about: About) -> Metrics:
    """All numbers of one release; `real_photos` as `scoring.real_photos` gives them, `about` the instruments."""
    values = summarise_columns(scores)
    identity = scores.column("identity")
    return Metrics(
        pictures=sum(not cell.is_pair for cell in scores.cells),
        subjects=len(identity),
        pairs=len({cell.names for cell in scores.cells if cell.is_pair}),
        pair_pictures=sum(cell.is_pair for cell in scores.cells),
        faces_missing=sum(found.count(0.0) for found in scores.column("face_found").values()),
        pictures_flagged=sum(map(bool, scores.values["flagged"])) if "flagged" in scores.values else None,
        perceptual_distance=about.perceptual_distance,
        instruments=about.instruments,
        identity_by_subject={name: float(np.mean(found)) for name, found in identity.items()},
        identity_real_photos=measure(real_photos),
        **values,
    )


def summarise_columns(scores: Scores) -> dict[str, Measure | None]:
    """Every measure of `Metrics` that the table tells: means over subjects, or over pairs, and ratios of means."""
    columns = {name: scores.column(name) for name in scores.values}
    values: dict[str, Measure | None] = {}
    for name, column in columns.items():
        if name in Metrics.model_fields:
            values[name] = measure_pairs(scores.pair_column(name)) if "pair_" in name else measure(column)
    for name, (top, bottom) in RATIOS.items():
        if top in columns and bottom in columns:
            values[name] = measure_ratio(columns[top], columns[bottom])
    return values
