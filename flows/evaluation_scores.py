"""An evaluation's numbers: what its pictures are measured to be, and how they are held beside production's."""

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from evaluation import protocol
from flows import artifacts
from flows.evaluation_pictures import kept, without_photos
from flows.run import Run
from flows.workers import JudgeWorker, ReferenceWorker
from infra.errors import UserError
from infra.ray_session import map_shards
from preprocessing.shards import encode_json

SCORES, METRICS = "scores.parquet", "metrics.json"


def is_measured(run: Run, folder: str) -> bool:
    """Whether every picture's values are there: evaluations of earlier versions have the means alone."""
    return all(run.store.exists(f"{folder}/{name}") for name in (SCORES, METRICS))


def read_metrics(run: Run, folder: str) -> dict[str, Any]:
    """An evaluation's metrics as plain data."""
    metrics: dict[str, Any] = json.loads(run.store.get(f"{folder}/{METRICS}"))
    return metrics


def read_scores(run: Run, folder: str) -> Any:
    """An evaluation's `Scores`: every picture's values."""
    from evaluation.scores import Scores

    return Scores.from_parquet(run.store.get(f"{folder}/{SCORES}"))


def measure(run: Run, people: Sequence[dict[str, Any]], folder: str, draws_subjects: bool = True) -> None:
    """Measure a drawn evaluation and keep every picture's values and the metrics. Needs Ray.

    Prompt by prompt: no pictures of two are compared. `draws_subjects` as the model says it of itself.
    """
    from evaluation.instruments import About
    from evaluation.scores import Scores
    from evaluation.summary import summarise

    tars = kept(run, folder)
    # All that there should be: of a model that draws nobody the prior's pictures stand for everybody.
    everybody = [] if draws_subjects else protocol.cells(run.settings.evaluate, without_photos(people))
    numbers = dict.fromkeys(cell.prompt for _, cells in tars for cell in cells)
    prompts = [
        {
            "prompt": number,
            "tars": [(key, cells) for key, cells in tars if any(cell.prompt == number for cell in cells)],
            "everybody": [cell for cell in everybody if cell.prompt == number],
        }
        for number in numbers
    ]
    # Each judge loads every instrument: it is worth it for a thousand pictures.
    pictures = len(everybody) + sum(len(cells) for _, cells in tars)
    judges = max(1, min(run.settings.evaluate.workers, pictures // 1000))
    gpus = run.settings.ray.gpus_per_worker
    arguments = (run.store, run.settings, list(people))
    results = map_shards(JudgeWorker, prompts, judges, arguments, gpus=gpus)
    with closing(results):
        judged = list(artifacts.tracked(results, len(prompts), "evaluate: prompts"))
    scores = Scores.joined([Scores.from_parquet(one["scores"]) for one in judged])
    metrics = summarise(scores, judged[0]["real_photos"], About.model_validate(judged[0]["about"]))
    run.store.put(f"{folder}/{SCORES}", scores.to_parquet())
    run.store.put(f"{folder}/{METRICS}", encode_json(metrics.model_dump(mode="json")))


def check_references(run: Run, people: Sequence[dict[str, Any]]) -> None:
    """Where identity is measured on faces: UserError for a reference photo without one, before anything is drawn."""
    if run.settings.models.identity.backend != "facenet":
        return
    missing = next(map_shards(ReferenceWorker, [{"people": list(people)}], 1, ()))["missing"]
    if missing:
        raise UserError(
            f"MTCNN finds no face in the reference photo of {', '.join(missing)} ({run.evaluation_spec()}): name "
            "others in evaluate.people."
        )


def metric_table(metrics: dict[str, Any], production: dict[str, Any] | None) -> list[dict[str, str]]:
    """The report's table as rows of text."""
    from evaluation.metric_table import metric_rows
    from evaluation.metrics import Metrics

    beside = None if production is None else Metrics.model_validate(production)
    rows = metric_rows(Metrics.model_validate(metrics), beside)
    columns = ("label", "release", "prior", "production", "note")
    return [{name: getattr(row, name) for name in columns} for row in rows]
