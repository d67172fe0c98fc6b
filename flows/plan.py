"""`moa plan`: what a run would do, stage by stage, why, and roughly how long. Starts no Ray and writes nothing."""

from collections import Counter
from typing import Any

from flows.ingest import new_photos
from flows.quantities import duration
from flows.run import COLUMNS, Run
from flows.world import read_wish
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.recipes import last_speed, load_recipe


def plan_run(settings: Settings) -> dict[str, Any]:
    """{"new_photos", "stages": [{"stage", "done", "pending", "why", "seconds"}], "seconds", "says"}.

    seconds: from the last run's speed of each stage, None where it never ran. Raises UserError for a model or a source
    that cannot be used, and where the photos were ingested with other ingest settings.
    """
    run = Run(settings)
    recipes = run.recipes
    before = run.done("ingest")
    if others := Counter(run.catalog.shard_frame("ingest")["fingerprint"].to_list()).keys() - {
        recipes["ingest"].fingerprint
    }:
        raise UserError(
            f"The photos in {settings.store_root} were ingested with other ingest settings "
            f"({'; '.join(_changes(run, 'ingest', sorted(others)[0]))}): restore them, or choose another --workspace."
        )
    photos = _new_photos(settings)
    chunks = -(-photos // settings.ingest.photos_per_shard)
    stages = [_stage(run, "ingest", before, chunks, [_count(photos, "new photo")] if photos else [])]
    unwanted = {name for name in COLUMNS if not getattr(settings.shard, name, True)}
    for stage in (stage for stage in recipes if stage != "ingest" and stage not in unwanted):
        pending = run.pending(stage)
        reasons = _reasons(run, stage, {row.shard for row in pending})
        if chunks:
            reasons.append(f"about {_count(chunks, 'shard')} of new photos")
        stages.append(_stage(run, stage, run.done(stage), len(pending) + chunks, reasons))
    made = {"new_photos": photos, "stages": stages, "seconds": _total(run, stages)}
    return {**made, "says": _says(run, made)}


def _stage(run: Run, stage: str, done: int, pending: int, why: list[str]) -> dict[str, Any]:
    if not pending or stage in COLUMNS:
        seconds: float | None = 0.0  # a column's time is the shard stage's
    else:
        speed = last_speed(run.store, stage)
        seconds = None if speed is None else round(speed.estimate(pending), 1)
    return {"stage": stage, "done": done, "pending": pending, "seconds": seconds, "why": why}


def _total(run: Run, stages: list[dict[str, Any]]) -> float | None:
    """Seconds of all stages; those that read ingest's shards alone run side by side."""
    if any(stage["seconds"] is None for stage in stages):
        return None
    beside = [s for s in stages if set(run.recipes[s["stage"]].inputs) & set(run.recipes) == {"ingest"}]
    others = sum(stage["seconds"] for stage in stages if stage not in beside)
    return others + max((stage["seconds"] for stage in beside), default=0.0)


def _new_photos(settings: Settings) -> int:
    if settings.ingest.source != "paperfolk":
        return len(new_photos(settings))
    drawn = Run(settings).photos / "ffhq"
    wanted = max(settings.paperfolk.photos, int(read_wish(settings)["photos"]))
    there = new_photos(settings) if drawn.is_dir() else []
    known = len(Run(settings).catalog.known_origins("paperfolk"))
    return max(len(there), wanted - known)  # those that have not been drawn yet are new as well


def _reasons(run: Run, stage: str, pending: set[str]) -> list[str]:
    """Why shards are pending: never done, or done with other settings, and with which."""
    rows = run.catalog.shard_frame(stage)
    older = rows.filter(rows["shard"].is_in(list(pending)))
    anew = older["shard"].n_unique()
    reasons = [f"{_count(len(pending) - anew, 'shard')} not done yet"] if len(pending) > anew else []
    if anew:
        # Of several older settings, those under which most of these shards were made.
        common = Counter(older["fingerprint"].to_list()).most_common(1)[0][0]
        reasons.append(f"{_count(anew, 'shard')} anew because {', '.join(_changes(run, stage, common))}")
    return reasons


def _changes(run: Run, stage: str, older: str) -> list[str]:
    """What differs between an older fingerprint's recipe and the present one, stages followed to what changed there."""
    recipe, now = load_recipe(run.store, older), run.recipes[stage]
    if recipe is None:
        return ["its settings or models changed"]
    found: list[str] = []
    for change in now.changes_since(recipe):
        if change in run.recipes:
            found += _changes(run, change, recipe.inputs[change]) if change in recipe.inputs else [f"{change} is new"]
        else:
            found.append(f"{change} changed" if change.startswith("models.") else change)
    return list(dict.fromkeys(found)) or ["its settings or models changed"]


def _says(run: Run, made: dict[str, Any]) -> str:
    if any(stage["pending"] for stage in made["stages"]):
        unknown = [one["stage"] for one in made["stages"] if one["pending"] and one["seconds"] is None]
        took = "" if made["seconds"] is None else f" in about {duration(made['seconds'])}"
        hint = f" ({', '.join(unknown)} never ran here: no speed is known)" if unknown else ""
        return f"{_count(sum(s['pending'] for s in made['stages']), 'shard')} to do{took}{hint}; then training."
    settled = run.settled()
    if settled is not None:
        return f"Nothing to do: release {settled.number} was made of exactly these photos and settings."
    return "No shard to do; training, evaluation and publishing remain." if run.training_shards() else "Nothing to do."


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
