"""The DAG of the seven stages, run on a schedule or when new photos arrive.

    new photos ─► ingest ─► caption ─┐
                     └───► segment ──┴─► shard ─► train ─► evaluate ─► gate ─► publish ─► production

With `near_duplicates.search`, `duplicates` stands between ingest and caption: what repeats another photo stays out of
the shards. Nothing new → the run ends early and says so. Every stage is a flow of its own and can be run alone.
"""

from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial

from flows import artifacts
from flows.background import in_background, wait_for
from flows.batch_check import check_batch
from flows.cancellation import stage_flow
from flows.caption import caption
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.job_records import at_work
from flows.near_duplicates import duplicates
from flows.publish import publish
from flows.run import COLUMNS, STAGES, Run, StageResult
from flows.segment import segment
from flows.shard import shard
from flows.train import train
from flows.world import prepare_world
from infra.errors import UserError
from infra.settings import Settings
from preprocessing.catalog import sweep


@dataclass(frozen=True)
class Journey:
    """What a retraining did: its stages, the release that is the result, and whether there was anything to do."""

    stages: list[StageResult]
    release: int
    run_id: str
    promoted: bool
    nothing_new: bool


@stage_flow("retrain")
def retrain(settings: Settings, from_scratch: bool = False, judge: bool = False) -> Journey:
    """Bring production up to date with the source's photos.

    judge: raise BatchRefused where the new ones are no batch to train on (`flows/batch_check.py`): nobody looks on.
    """
    run = Run(settings)
    prepare_world(settings)
    if not at_work(run.store):  # a job whose driver was killed goes on, and has not committed all that it uploaded
        sweep(run.store, run.catalog, (*STAGES, *COLUMNS))  # what a killed run uploaded and never committed
    searched = [duplicates] if settings.near_duplicates.search else []
    stages = [_say(stage(settings)) for stage in (ingest, *searched)]
    stages += [*map(_say, side_by_side(settings, [caption, segment])), _say(shard(settings))]
    if not run.training_shards():
        raise UserError(_nothing_usable(run))
    settled = run.settled(from_scratch)
    if judge:
        check_batch(run, stages, settled)
    if settled is not None:
        card = run.releases.card(settled)
        artifacts.markdown("nothing-new", f"Release {settled.number} was made of exactly these photos and settings.")
        return Journey(stages, settled.number, card["run_id"], bool(card["verdict"]["promote"]), True)
    trained = _say(train(settings, from_scratch))
    run_id = trained.facts["run_id"]
    evaluated = _say(evaluate(settings, run_id))
    published = _say(publish(settings, run_id))
    stages += [trained, evaluated, published]
    return Journey(stages, published.facts["release"], run_id, published.facts["promoted"], False)


def side_by_side(settings: Settings, stages: Sequence[Callable[[Settings], StageResult]]) -> list[StageResult]:
    """Run stages that need nothing of each other at the same time; they share the GPUs.

    The others are waited for where one fails, so that what they finish is committed; the first error is raised.
    """
    share = settings.ray.gpus_per_worker / len(stages)
    shared = settings.model_copy(update={"ray": settings.ray.model_copy(update={"gpus_per_worker": share})})
    # A copy of the context each: by it Prefect knows whose subflows they are.
    futures = [in_background(partial(copy_context().run, stage, shared)) for stage in stages]
    wait_for(futures)
    return [future.result() for future in futures]


def _say(result: StageResult) -> StageResult:
    artifacts.console.print(f"[bold]{result.stage:<9}[/] {result.note} [dim]{result.seconds:.0f} s[/]")
    artifacts.log(f"{result.note}, {result.seconds:.0f} s", stage=result.stage)
    return result


def _nothing_usable(run: Run) -> str:
    counts = run.catalog.counts(run.fingerprints)
    if not counts.seen:
        return f"There are no photos in {run.settings.ingest.source}: give a folder that holds some."
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.refused.items())
    return f"None of {counts.seen} photos can be trained on ({reasons}): add photos that show a person."
