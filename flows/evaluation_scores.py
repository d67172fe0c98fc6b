"""An evaluation's numbers: what its pictures are measured to be, and how they are held beside production's."""

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from flows import artifacts
from flows.evaluation_pictures import Drawn
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


def measure(run: Run, drawn: Sequence[Drawn], people: Sequence[dict[str, Any]], folder: str) -> None:
    """Measure the pictures and keep every picture's values and the metrics. Needs Ray.

    Prompt by prompt: no pictures of two are compared.
    """
    from evaluation.instruments import About
    from evaluation.scores import Scores
    from evaluation.summary import summarise

    prompts: dict[int, dict[str, Any]] = {}
    for one in drawn:
        item = prompts.setdefault(one[0].prompt, {"release": [], "prior": []})
        item["release" if one[0].names else "prior"].append(one)
    # Each judge loads every instrument: it is worth it for a thousand pictures.
    judges = max(1, min(run.settings.evaluate.workers, len(drawn) // 1000))
    gpus = run.settings.ray.gpus_per_worker
    results = map_shards(JudgeWorker, list(prompts.values()), judges, (run.settings, list(people)), gpus=gpus)
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
