"""Stage 7: the trained adapter becomes a numbered, immutable release; if the gate says so, production moves to it."""

import json
import time
from typing import Any

from flows import artifacts
from flows.cancellation import stage_flow
from flows.evaluate import evaluation_folder, metric_table, people_fingerprint
from flows.evaluation_people import read_people
from flows.run import Run, StageResult
from flows.train import current_training, finished_training, lineage, trained_adapter
from flows.training_continuity import told_course
from infra.errors import UserError
from infra.settings import Settings


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
    published = run.releases.find(run_id)
    if published is None:
        card = {
            **lineage(run, finished_training(run, run_id)),
            "evaluation": fingerprint,
            "metrics": evaluated["metrics"],
            "verdict": evaluated["verdict"],
            "compared_with": evaluated["production_release"],
            "comparison": evaluated["comparison"],
        }
        files = {**trained_adapter(run, run_id), "README.md": model_card(card, evaluated["production"]).encode()}
        published = run.releases.publish(files, card)
    verdict = run.releases.manifest(published)["lineage"]["verdict"]
    alias = settings.publish.alias
    already = any(move.release == published for move in run.releases.history(alias))
    if verdict["promote"] and not already:
        run.releases.promote(alias, published.id, "passed the gate")
    promoted = bool(verdict["promote"])
    artifacts.link("release", run.store.uri(f"releases/{published.id}/manifest.json"), f"release {published.number}")
    says = f"{alias} now points at it" if promoted else f"kept, {alias} stays where it was: {verdict['reasons'][0]}"
    facts = {"release": published.number, "id": published.id, "run_id": run_id, "promoted": promoted, "folder": folder}
    seconds = time.monotonic() - started
    return StageResult("publish", 1, 0, seconds=seconds, note=f"release {published.number}: {says}", facts=facts)


def model_card(card: dict[str, Any], production: dict[str, Any] | None) -> str:
    """The release's README."""
    lines = [
        "# A MoA adapter",
        "",
        "Mixture-of-Attention (arXiv 2404.11565) experts and routers for one Stable Diffusion base.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {model} |" for name, model in card["models"].items()),
        f"| trained on | {card['samples']} samples, catalog version {card['catalog_version']} |",
        f"| catalog | `{card['catalog_digest'][:16]}` |",
        f"| started from | {card['start']} |",
        f"| training run | `{card['run_id']}` |",
        *(f"| {name} | {value} |" for name, value in told_course(card["course"]).items()),
        "",
        "## Measured on people never seen in training",
        "",
        "| | release | prior | production then |",
        "| --- | --- | --- | --- |",
    ]
    for row in metric_table(card["metrics"], production):
        lines.append(f"| {row['label']} | {row['release']} | {row['prior']} | {row['production']} |")
    decided = "promote" if card["verdict"]["promote"] else "do not promote"
    lines += ["", f"## The gate: {decided}", "", *(f"- {check['sentence']}" for check in card["verdict"]["checks"]), ""]
    return "\n".join(lines)
