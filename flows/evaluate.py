"""Stage 6: a trained adapter draws people whom it never saw, and its pictures are measured beside the prior's.

Any other model is judged by the same protocol (`flows/contenders.py`), without the gate: it is no candidate.
"""

import hashlib
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

from flows import artifacts
from flows.cancellation import stage_flow
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.contenders import AdapterModel, Contender, DrawingModel, find_contender, released
from flows.evaluation_people import note_people, read_people
from flows.evaluation_pictures import draw_evaluation, pictures_address, read_drawn
from flows.evaluation_scores import check_references, is_measured, measure, metric_table, read_metrics, read_scores
from flows.evaluation_split import check_split
from flows.run import Run, StageResult, digest
from flows.train import current_training, finished_training, trained_adapter
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.shards import decode_picture, encode_json


@stage_flow("evaluate")
def evaluate(settings: Settings, run_id: str = "", from_scratch: bool = False, model: str = "") -> StageResult:
    """Draw, measure and hold against the gate; `run_id` "" = the training of what the catalog holds now.

    model: judge this one instead, as `find_contender` takes it.
    """
    started, run = time.monotonic(), Run(settings)
    if model:
        return _evaluate_model(run, model)
    run_id = run_id or current_training(run, from_scratch)
    if not run.store.exists(f"runs/{run_id}/finished.json"):
        raise UserError(f"Training {run_id} is not finished: run moa train first.")
    if runs_on_cluster(settings):
        decides = [run_id, settings.evaluate.model_dump(mode="json"), run.fingerprints]
        return run_on_cluster(run, "evaluate", decides, {"run_id": run_id})
    people = read_people(run)
    fingerprint = people_fingerprint(run, people)
    folder = evaluation_folder(run_id, fingerprint)
    before = is_measured(run, folder)
    if not before:
        check_split(run, finished_training(run, run_id)["plan"])
        _draw_and_measure(run, AdapterModel(trained_adapter(run, run_id)), people, folder)
    metrics = read_metrics(run, folder)
    production = run.releases.current(settings.publish.alias)
    theirs = _evaluated(run, released(run.releases, production), people, fingerprint) if production else ""
    beside = read_metrics(run, theirs) if theirs else None
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
    drawn = islice((png for _, png, _ in read_drawn(run, folder, lambda cell: cell.subject is not None)), 48)
    artifacts.pictures("drawn", [decode_picture(png) for png in drawn], "First pictures drawn", 12)
    seconds = time.monotonic() - started
    return StageResult(
        "evaluate", 0 if before else 1, int(before), seconds=seconds, note=_counted(metrics), facts=facts
    )


def _evaluate_model(run: Run, spec: str) -> StageResult:
    """Draw and measure any model, and what its table is held beside: production's release, where there is another."""
    started, contender = time.monotonic(), find_contender(run, spec)
    if runs_on_cluster(run.settings):
        decides = [contender.spec, run.settings.evaluate.model_dump(mode="json"), run.fingerprints]
        return run_on_cluster(run, "evaluate", decides, {"model": contender.spec})
    people = read_people(run)
    fingerprint = people_fingerprint(run, people)
    before = is_measured(run, contender.folder(run, fingerprint))
    folder = _evaluated(run, contender, people, fingerprint)
    metrics = read_metrics(run, folder)
    production = run.releases.current(run.settings.publish.alias)
    beside = None
    if production and production != contender.release:
        beside = read_metrics(run, _evaluated(run, released(run.releases, production), people, fingerprint))
    artifacts.table("metrics", metric_table(metrics, beside), f"Metrics of {contender.name}")
    facts = {
        "model": contender.name,
        "evaluation": fingerprint,
        "folder": folder,
        "pictures": pictures_address(run, folder),
        "metrics": metrics,
        "production": beside,
        "production_release": production.number if production else None,
    }
    seconds, note = time.monotonic() - started, f"{contender.name}: {_counted(metrics)}"
    return StageResult("evaluate", 0 if before else 1, int(before), seconds=seconds, note=note, facts=facts)


def _counted(metrics: dict[str, Any]) -> str:
    pairs = f", {metrics['pair_pictures']} of {metrics['pairs']} pairs" if metrics["pairs"] else ""
    return f"{metrics['pictures']} pictures of {metrics['subjects']} people{pairs}"


def people_fingerprint(run: Run, people: Sequence[dict[str, Any]]) -> str:
    """What makes two evaluations comparable: models, prompts, seeds and exactly these photos."""
    shown = [[one["name"], one["word"], *map(_sha256, one["photos"])] for one in people]
    return run.evaluation_fingerprint(digest(shown))


def evaluation_folder(run_id: str, fingerprint: str) -> str:
    """Where an evaluation's results lie in the store."""
    return f"runs/{run_id}/evaluation-{fingerprint}"


def _evaluated(run: Run, contender: Contender, people: Sequence[dict[str, Any]], fingerprint: str) -> str:
    """The folder in which the model is measured under this protocol: as it was once, or now."""
    folder = contender.folder(run, fingerprint)
    if not is_measured(run, folder):
        run.store.put(f"{folder}/model.json", encode_json(contender.about))
        _draw_and_measure(run, contender.load(), people, folder)
    return folder


def judge(run: Run, folder: str, production: str = "") -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The comparison with production's evaluation, if there is one, and the gate's verdict, as plain data."""
    from evaluation.comparison import compare
    from evaluation.gate import gate
    from evaluation.metrics import Metrics

    metrics = Metrics.model_validate(read_metrics(run, folder))
    comparison = compare(read_scores(run, folder), read_scores(run, production)) if production else None
    verdict = gate(metrics, run.settings.publish, comparison).model_dump(mode="json")
    return None if comparison is None else comparison.model_dump(mode="json"), verdict


def _draw_and_measure(run: Run, model: DrawingModel, people: Sequence[dict[str, Any]], folder: str) -> None:
    check_references(run, people)
    if model.draws_subjects:
        note_people(run, people, folder)
    draw_evaluation(run, model, people, folder)
    measure(run, people, folder, model.draws_subjects)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
