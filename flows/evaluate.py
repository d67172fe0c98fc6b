"""Stage 6: a trained adapter draws people whom it never saw, and its pictures are measured beside the prior's."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from prefect import flow

from flows import artifacts
from flows.evaluation_people import read_people
from flows.evaluation_split import check_split
from flows.run import Run, StageResult, digest
from flows.train import ADAPTER_FILES, current_training, trained_adapter
from flows.workers import JudgeWorker, PaintWorker
from infra.errors import UserError
from infra.ray_session import map_shards
from infra.registry import Release
from infra.settings import Settings
from preprocessing.shards import decode_npy, encode_json, encode_npy, read_tar, write_tar

PICTURES = "pictures.tar"


@flow(name="evaluate")
def evaluate(settings: Settings, run_id: str = "", from_scratch: bool = False) -> StageResult:
    """Draw, measure and hold against the gate; `run_id` "" = the training of what the catalog holds now."""
    started, run = time.monotonic(), Run(settings)
    run_id = run_id or current_training(run, from_scratch)
    if not run.store.exists(f"runs/{run_id}/finished.json"):
        raise UserError(f"Training {run_id} is not finished: run moa train first.")
    people = read_people(run)
    fingerprint = people_fingerprint(run, people)
    folder = evaluation_folder(run_id, fingerprint)
    before = run.store.exists(f"{folder}/metrics.json")
    if not before:
        plan = json.loads(run.store.get(f"runs/{run_id}/finished.json"))["plan"]
        check_split(run, plan)
        _draw_and_measure(run, trained_adapter(run, run_id), people, folder)
    metrics = json.loads(run.store.get(f"{folder}/metrics.json"))
    production = run.releases.current(settings.publish.alias)
    beside = production_metrics(run, production, people, fingerprint) if production else None
    verdict = judge(run, metrics, beside)
    facts = {
        "run_id": run_id,
        "evaluation": fingerprint,
        "folder": folder,
        "metrics": metrics,
        "production": beside,
        "production_release": production.number if production else None,
        "verdict": verdict,
    }
    run.store.put(f"{folder}/verdict.json", encode_json(facts))
    artifacts.table("metrics", metric_table(metrics, beside), "Metrics of the new release")
    reasons = "\n".join(f"- {check['sentence']}" for check in verdict["checks"])
    artifacts.markdown("gate", f"**{'promote' if verdict['promote'] else 'keep, do not promote'}**\n\n{reasons}")
    drawn = read_pictures(run, folder)
    shown = [picture for cell, picture, _ in drawn if cell.subject][:48]
    artifacts.pictures("drawn", shown, "First pictures drawn", 12)
    note = f"{metrics['pictures']} pictures of {metrics['subjects']} people"
    seconds = time.monotonic() - started
    return StageResult("evaluate", 0 if before else 1, int(before), seconds=seconds, note=note, facts=facts)


def people_fingerprint(run: Run, people: Sequence[dict[str, Any]]) -> str:
    """What makes two evaluations comparable: models, prompts, seeds and exactly these photos."""
    shown = [[one["name"], one["word"], *map(_sha256, one["photos"])] for one in people]
    return run.evaluation_fingerprint(digest(shown))


def evaluation_folder(run_id: str, fingerprint: str) -> str:
    """Where an evaluation's results lie in the store."""
    return f"runs/{run_id}/evaluation-{fingerprint}"


def production_metrics(
    run: Run, production: Release, people: Sequence[dict[str, Any]], fingerprint: str
) -> dict[str, Any]:
    """The metrics of the release in production under this protocol: as its card says, or measured now."""
    card = run.releases.card(production)
    if card["evaluation"] == fingerprint:
        return dict(card["metrics"])
    folder = f"releases-evaluated/{production.id}/{fingerprint}"
    if not run.store.exists(f"{folder}/metrics.json"):
        adapter = {name: run.releases.read(production, name) for name in ADAPTER_FILES}
        _draw_and_measure(run, adapter, people, folder)
    return dict(json.loads(run.store.get(f"{folder}/metrics.json")))


def judge(run: Run, metrics: dict[str, Any], production: dict[str, Any] | None) -> dict[str, Any]:
    """The gate's verdict as plain data."""
    from evaluation.metrics import Metrics
    from evaluation.protocol import gate

    beside = None if production is None else Metrics.model_validate(production)
    return gate(Metrics.model_validate(metrics), beside, run.settings.publish).model_dump(mode="json")


def metric_table(metrics: dict[str, Any], production: dict[str, Any] | None) -> list[dict[str, str]]:
    """The report's table as rows of text."""
    from evaluation.metrics import Metrics
    from evaluation.report import metric_rows

    beside = None if production is None else Metrics.model_validate(production)
    rows = metric_rows(Metrics.model_validate(metrics), beside)
    columns = ("label", "release", "prior", "production", "note")
    return [{name: getattr(row, name) for name in columns} for row in rows]


def read_pictures(run: Run, folder: str) -> list[tuple[Any, Any, Any]]:
    """An evaluation's drawings: (Cell, picture, router map or None), as they were drawn."""
    from evaluation.protocol import Cell
    from preprocessing.shards import decode_picture

    drawn = []
    for sample in read_tar(run.store.get(f"{folder}/{PICTURES}")):
        router = sample.parts.get("router.npy")
        cell = Cell.model_validate(sample.json())
        drawn.append((cell, decode_picture(sample.parts["png"]), None if router is None else decode_npy(router)))
    return drawn


def _draw_and_measure(run: Run, adapter: dict[str, bytes], people: Sequence[dict[str, Any]], folder: str) -> None:
    from evaluation.protocol import Subject, batches, cells, prior_cells

    settings = run.settings.evaluate
    subjects: list[Any] = [Subject(one["name"], one["word"], None) for one in people]  # type: ignore[arg-type]
    photos = {one["name"]: one["photos"][0] for one in people}
    items = [
        {"cells": batch, "photos": {cell.subject: photos[cell.subject] for cell in batch if cell.subject}}
        for todo in (prior_cells(settings, subjects), cells(settings, subjects))
        for batch in batches(todo, settings.batch_size)
    ]
    results = map_shards(PaintWorker, items, settings.workers, (run.settings, adapter))
    with closing(results):
        tracked = artifacts.tracked(results, len(items), "evaluate: batches")
        drawn = [one for result in tracked for one in result["drawn"]]
    drawn.sort(key=lambda one: one[0].model_dump_json())
    release = [one for one in drawn if one[0].subject is not None]
    prior = [one for one in drawn if one[0].subject is None]
    item = {"release": release, "prior": prior, "people": list(people)}
    metrics = next(map_shards(JudgeWorker, [item], 1, (run.settings,)))["metrics"]
    run.store.put(f"{folder}/{PICTURES}", write_tar((f"{i:06d}", _parts(*one)) for i, one in enumerate(drawn)))
    run.store.put(f"{folder}/metrics.json", encode_json(metrics))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parts(cell: Any, png: bytes, router: Any) -> dict[str, bytes]:
    parts = {"json": encode_json(cell.model_dump(mode="json")), "png": png}
    return parts if router is None else parts | {"router.npy": encode_npy(router)}
