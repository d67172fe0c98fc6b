"""Stage 6: a trained adapter draws people whom it never saw, and its pictures are measured beside the prior's."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from flows import artifacts
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.evaluation_people import read_people
from flows.evaluation_split import check_split
from flows.run import Run, StageResult, digest
from flows.train import ADAPTER_FILES, current_training, trained_adapter
from flows.workers import JudgeWorker, PaintWorker, ReferenceWorker
from infra.errors import UserError
from infra.ray_session import map_shards
from infra.registry import Release
from infra.settings import Settings
from preprocessing.shards import decode_npy, encode_json, encode_npy, read_tar, write_tar

PICTURES, SCORES, METRICS = "pictures.tar", "scores.parquet", "metrics.json"


@stage_flow("evaluate")
def evaluate(settings: Settings, run_id: str = "", from_scratch: bool = False) -> StageResult:
    """Draw, measure and hold against the gate; `run_id` "" = the training of what the catalog holds now."""
    started, run = time.monotonic(), Run(settings)
    run_id = run_id or current_training(run, from_scratch)
    if not run.store.exists(f"runs/{run_id}/finished.json"):
        raise UserError(f"Training {run_id} is not finished: run moa train first.")
    if runs_on_cluster(settings):
        decides = [run_id, settings.evaluate.model_dump(mode="json"), run.fingerprints]
        return run_on_cluster(run, "evaluate", decides, {"run_id": run_id})
    people = read_people(run)
    fingerprint = people_fingerprint(run, people)
    folder = evaluation_folder(run_id, fingerprint)
    before = _is_measured(run, folder)
    if not before:
        plan = json.loads(run.store.get(f"runs/{run_id}/finished.json"))["plan"]
        check_split(run, plan)
        _draw_and_measure(run, trained_adapter(run, run_id), people, folder)
    metrics = json.loads(run.store.get(f"{folder}/{METRICS}"))
    production = run.releases.current(settings.publish.alias)
    theirs = production_evaluation(run, production, people, fingerprint) if production else ""
    beside = json.loads(run.store.get(f"{theirs}/{METRICS}")) if theirs else None
    comparison, verdict = judge(run, folder, theirs)
    facts = {
        "run_id": run_id,
        "evaluation": fingerprint,
        "folder": folder,
        "metrics": metrics,
        "production": beside,
        "production_release": production.number if production else None,
        "comparison": comparison,
        "verdict": verdict,
    }
    run.store.put(f"{folder}/verdict.json", encode_json(facts))
    artifacts.table("metrics", metric_table(metrics, beside), "Metrics of the new release")
    reasons = "\n".join(f"- {check['sentence']}" for check in verdict["checks"])
    artifacts.markdown("gate", f"**{'promote' if verdict['promote'] else 'keep, do not promote'}**\n\n{reasons}")
    drawn = read_pictures(run, folder)
    shown = [picture for cell, picture, _ in drawn if cell.subject][:48]
    artifacts.pictures("drawn", shown, "First pictures drawn", 12)
    pairs = f", {metrics['pair_pictures']} of {metrics['pairs']} pairs" if metrics["pairs"] else ""
    note = f"{metrics['pictures']} pictures of {metrics['subjects']} people{pairs}"
    seconds = time.monotonic() - started
    return StageResult("evaluate", 0 if before else 1, int(before), seconds=seconds, note=note, facts=facts)


def people_fingerprint(run: Run, people: Sequence[dict[str, Any]]) -> str:
    """What makes two evaluations comparable: models, prompts, seeds and exactly these photos."""
    shown = [[one["name"], one["word"], *map(_sha256, one["photos"])] for one in people]
    return run.evaluation_fingerprint(digest(shown))


def evaluation_folder(run_id: str, fingerprint: str) -> str:
    """Where an evaluation's results lie in the store."""
    return f"runs/{run_id}/evaluation-{fingerprint}"


def production_evaluation(run: Run, production: Release, people: Sequence[dict[str, Any]], fingerprint: str) -> str:
    """The folder in which the release in production is measured under this protocol: as it was then, or now."""
    folder = evaluated_folder(run, production, fingerprint)
    if not folder:
        folder = f"releases-evaluated/{production.id}/{fingerprint}"
        adapter = {name: run.releases.read(production, name) for name in ADAPTER_FILES}
        _draw_and_measure(run, adapter, people, folder)
    return folder


def evaluated_folder(run: Run, release: Release, fingerprint: str) -> str:
    """The folder in which a release was measured under this protocol, then or later; "" where none is here."""
    then = evaluation_folder(run.releases.card(release)["run_id"], fingerprint)
    later = f"releases-evaluated/{release.id}/{fingerprint}"
    return next((folder for folder in (then, later) if _is_measured(run, folder)), "")


def _is_measured(run: Run, folder: str) -> bool:
    """Whether every picture's values are there: evaluations of earlier versions have the means alone."""
    return all(run.store.exists(f"{folder}/{name}") for name in (SCORES, METRICS))


def judge(run: Run, folder: str, production: str = "") -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The comparison with production's evaluation, if there is one, and the gate's verdict, as plain data."""
    from evaluation.comparison import compare
    from evaluation.gate import gate
    from evaluation.metrics import Metrics
    from evaluation.scores import Scores

    def scores(place: str) -> Scores:
        return Scores.from_parquet(run.store.get(f"{place}/{SCORES}"))

    metrics = Metrics.model_validate_json(run.store.get(f"{folder}/{METRICS}"))
    comparison = compare(scores(folder), scores(production)) if production else None
    verdict = gate(metrics, run.settings.publish, comparison).model_dump(mode="json")
    return None if comparison is None else comparison.model_dump(mode="json"), verdict


def metric_table(metrics: dict[str, Any], production: dict[str, Any] | None) -> list[dict[str, str]]:
    """The report's table as rows of text."""
    from evaluation.metric_table import metric_rows
    from evaluation.metrics import Metrics

    beside = None if production is None else Metrics.model_validate(production)
    rows = metric_rows(Metrics.model_validate(metrics), beside)
    columns = ("label", "release", "prior", "production", "note")
    return [{name: getattr(row, name) for name in columns} for row in rows]


def read_pictures(
    run: Run, folder: str, wanted: Callable[[Any], bool] = lambda cell: True
) -> list[tuple[Any, Any, Any]]:
    """An evaluation's drawings of the cells that are wanted: (Cell, picture, router map or None), as drawn."""
    from evaluation.protocol import Cell
    from preprocessing.shards import decode_picture

    drawn = []
    for sample in read_tar(run.store.get(f"{folder}/{PICTURES}")):
        cell = Cell.model_validate(sample.json())
        if not wanted(cell):
            continue
        router = sample.parts.get("router.npy")
        drawn.append((cell, decode_picture(sample.parts["png"]), None if router is None else decode_npy(router)))
    return drawn


def _draw_and_measure(run: Run, adapter: dict[str, bytes], people: Sequence[dict[str, Any]], folder: str) -> None:
    from evaluation.protocol import Subject, batches, cells, prior_cells

    settings = run.settings.evaluate
    _check_references(run, people)
    subjects: list[Any] = [Subject(one["name"], one["word"], None) for one in people]  # type: ignore[arg-type]
    photos = {one["name"]: one["photos"][0] for one in people}
    items = [
        {"cells": batch, "photos": {name: photos[name] for cell in batch for name in cell.names}}
        for todo in (prior_cells(settings, subjects), cells(settings, subjects))
        for batch in batches(todo, settings.batch_size)
    ]
    results = map_shards(PaintWorker, items, settings.workers, (run.settings, adapter))
    with closing(results):
        tracked = artifacts.tracked(results, len(items), "evaluate: batches")
        drawn = [one for result in tracked for one in result["drawn"]]
    drawn.sort(key=lambda one: one[0].model_dump_json())
    run.store.put(f"{folder}/{PICTURES}", write_tar((f"{i:06d}", _parts(*one)) for i, one in enumerate(drawn)))
    scores, metrics = _measure(run, drawn, people)
    run.store.put(f"{folder}/{SCORES}", scores)
    run.store.put(f"{folder}/{METRICS}", encode_json(metrics))


def _measure(
    run: Run, drawn: Sequence[tuple[Any, bytes, Any]], people: Sequence[dict[str, Any]]
) -> tuple[bytes, dict[str, Any]]:
    """Every picture's values as Parquet, and the metrics; prompt by prompt: no pictures of two are compared."""
    from evaluation.instruments import About
    from evaluation.scores import Scores
    from evaluation.summary import summarise

    prompts: dict[int, dict[str, Any]] = {}
    for one in drawn:
        item = prompts.setdefault(one[0].prompt, {"release": [], "prior": []})
        item["release" if one[0].names else "prior"].append(one)
    # Each judge loads every instrument: it is worth it for a thousand pictures.
    judges = max(1, min(run.settings.evaluate.workers, len(drawn) // 1000))
    results = map_shards(JudgeWorker, list(prompts.values()), judges, (run.settings, list(people)))
    with closing(results):
        judged = list(artifacts.tracked(results, len(prompts), "evaluate: prompts"))
    scores = Scores.joined([Scores.from_parquet(one["scores"]) for one in judged])
    metrics = summarise(scores, judged[0]["real_photos"], About.model_validate(judged[0]["about"]))
    return scores.to_parquet(), metrics.model_dump(mode="json")


def _check_references(run: Run, people: Sequence[dict[str, Any]]) -> None:
    """Where identity is measured on faces: UserError for a reference photo without one, before anything is drawn."""
    if run.settings.models.identity.backend != "facenet":
        return
    missing = next(map_shards(ReferenceWorker, [{"people": list(people)}], 1, ()))["missing"]
    if missing:
        raise UserError(
            f"MTCNN finds no face in the reference photo of {', '.join(missing)} ({run.evaluation_spec()}): name "
            "others in evaluate.people."
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parts(cell: Any, png: bytes, router: Any) -> dict[str, bytes]:
    parts = {"json": encode_json(cell.model_dump(mode="json")), "png": png}
    return parts if router is None else parts | {"router.npy": encode_npy(router)}
