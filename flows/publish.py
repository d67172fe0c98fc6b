"""Stage 7: the trained adapter becomes a numbered, immutable release; if the gate says so, production moves to it."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flows import artifacts, events
from flows.cancellation import stage_flow
from flows.evaluate import evaluation_folder, people_fingerprint
from flows.evaluation_people import read_people
from flows.licences import training_licences
from flows.run import Run, StageResult
from flows.train import ADAPTER_FILES, current_training, finished_training, lineage
from infra.errors import UserError
from infra.large_objects import local_file
from infra.registry import Release
from infra.release_signatures import Signer
from infra.settings import Settings
from preprocessing.shards import encode_json


@stage_flow("publish")
def publish(settings: Settings, run_id: str = "", from_scratch: bool = False) -> StageResult:
    """Publish a training that was evaluated; `run_id` "" = the training of what the catalog holds now.

    Repeating it, also after a kill between its two steps, changes nothing.
    """
    started, run = time.monotonic(), Run(settings)
    run_id = run_id or current_training(run, from_scratch)
    fingerprint = people_fingerprint(run, read_people(run))
    folder = evaluation_folder(run_id, fingerprint)
    if not run.store.exists(f"{folder}/verdict.json"):
        raise UserError(f"Training {run_id} was not evaluated: run moa evaluate first.")
    evaluated = json.loads(run.store.get(f"{folder}/verdict.json"))
    published, said = run.releases.find(run_id), list[str]()
    new = published is None
    if published is None:
        published = _release(run, run_id, fingerprint, evaluated, said.append)
    elif signer := _signer(settings):
        run.releases.sign(published, signer)
    verdict = run.releases.card(published)["verdict"]
    alias = settings.publish.alias
    already = any(move.release == published for move in run.releases.history(alias))
    if verdict["promote"] and not already:
        run.releases.promote(alias, published.id, "passed the gate")
    promoted = bool(verdict["promote"])
    artifacts.link("release", run.releases.uri(published), f"release {published.number}")
    says = f"{alias} now points at it" if promoted else f"kept, {alias} stays where it was: {verdict['reasons'][0]}"
    _tell(settings, published, verdict, new=new, moved=promoted and not already)
    facts = {"release": published.number, "id": published.id, "run_id": run_id, "promoted": promoted, "folder": folder}
    seconds = time.monotonic() - started
    note = " ".join([f"release {published.number}: {says}", *said])
    return StageResult("publish", 1, 0, seconds=seconds, note=note, facts=facts)


def _tell(settings: Settings, release: Release, verdict: Mapping[str, Any], new: bool, moved: bool) -> None:
    """New release, production moved, gate refused: each once, whoever repeats the stage."""
    name, alias = f"{settings.publish.model}@{release.number}", settings.publish.alias
    facts = {"release": release.number, "id": release.id}
    if new:
        events.tell(settings, events.RELEASED, says=f"{name} was published.", **facts)
    if moved:
        events.tell(settings, events.PROMOTED, says=f"{alias} is now {name}: it passed the gate.", **facts)
    if new and not verdict["promote"]:
        why = list(verdict["reasons"])
        says = f"The gate refused {name}, {alias} stays where it was: {why[0]}"
        events.tell(settings, events.GATE_REFUSED, says=says, reasons=why, **facts)


def _release(
    run: Run, run_id: str, fingerprint: str, evaluated: Mapping[str, Any], say: Callable[[str], None]
) -> Release:
    """Publish a training's adapter with its card, metrics and lineage; `say` hears of other publishers."""
    from flows.model_card import model_card  # by the metrics' names it knows torch

    finished = finished_training(run, run_id)
    plan = finished["plan"]
    passed_over = list(plan.get("damaged", []))
    made = {
        **lineage(run, finished),
        "damaged_shards": passed_over,
        "licences": training_licences(run, plan["catalog_version"], passed_over),
    }
    measured = {
        "evaluation": fingerprint,
        "metrics": evaluated["metrics"],
        "verdict": evaluated["verdict"],
        "compared_with": evaluated["production_release"],
        "comparison": evaluated["comparison"],
    }
    publish = run.settings.publish
    readme = model_card({**made, **measured}, evaluated["production"], publish.model, publish.alias)
    with tempfile.TemporaryDirectory(prefix="moa-publish-") as folder, artifacts.telling() as tell:
        adapter = {name: local_file(run.store, f"runs/{run_id}/{name}", Path(folder)) for name in ADAPTER_FILES}
        texts = {"README.md": readme.encode(), "metrics.json": encode_json(measured)}
        progress = partial(tell, "publish: bytes")
        return run.releases.publish({**adapter, **texts}, made, say, progress, _signer(run.settings))


def _signer(settings: Settings) -> Signer | None:
    """The settings' key. Raises UserError where it cannot be used."""
    return Signer(settings.publish.signing_key) if settings.publish.signing_key else None
