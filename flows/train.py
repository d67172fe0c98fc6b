"""Stage 5: MoA is trained with Ray Train on all samples of one catalog version; a killed run goes on where it was."""

import json
import os
import tempfile
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from flows import artifacts, training_cluster
from flows.background import in_background
from flows.cancellation import stage_flow
from flows.checkpoints import RELEASED, fetch_checkpoint, folder_of, latest_step, patiently
from flows.cluster_job import run_on_cluster, runs_on_cluster
from flows.evaluation_people import read_people
from flows.evaluation_split import check_split
from flows.machine_watch import MachineWatch
from flows.run import Run, StageResult, describe, digest
from flows.training_continuity import continuity, course_for_card
from flows.training_history import AttemptLog
from flows.training_job import HISTORY, News, ProgressReporter, TrainingJob, work
from flows.training_metrics import LiveMetrics, LivePictures
from flows.training_resize import saving_before
from infra import model_files
from infra.errors import UserError, room_on_disk
from infra.settings import ModelReference, Settings
from preprocessing.catalog import load_shard

ADAPTER_FILES = ("adapter.safetensors", "adapter_config.json")
SHIPPED_RELEASE = "release-1"
# After a preempted machine's deadline: before it is gone, Ray counts it as one that new workers could have, and then
# waits a minute for it in vain.
_GONE_SECONDS = 10.0
_MOST_FAILURES = 8  # of workers and machines in one attempt; the next one begins if this one came to a checkpoint


class WorkersFailed(UserError):
    """Of an attempt, more often than Ray is to start them again."""


@stage_flow("train")
def train(settings: Settings, from_scratch: bool = False) -> StageResult:
    """Train on what the catalog holds now and leave the adapter in the run's folder of the store."""
    run = Run(settings)
    settled = run.settled(from_scratch)
    if settled is not None:
        facts = {"run_id": run.releases.card(settled)["run_id"]}
        note = f"release {settled.number} was made of exactly these photos and settings"
        return StageResult("train", 0, 1, note=note, facts=facts)
    plan = plan_training(run, from_scratch)
    if run.store.exists(_key(plan["run_id"], "finished.json")):
        _let_go(run, plan["run_id"])
        return StageResult("train", 0, 1, note="this training was finished before", facts=plan)
    if runs_on_cluster(settings):
        return run_on_cluster(run, "train", plan["run_id"], {"plan": plan})
    return train_planned(settings, plan)


def train_planned(settings: Settings, plan: dict[str, Any]) -> StageResult:
    """What `plan_training` planned, from its latest checkpoint on. Needs a `ray_session`."""
    started, run = time.monotonic(), Run(settings)
    check_split(run, plan)
    continued = latest_step(run.store, plan["run_id"])
    plan |= {"damaged": damaged_shards(run, plan)}
    fit(run, plan)
    finish(run, plan)
    told = continuity(run.store, plan["run_id"], finished_training(run, plan["run_id"]))
    for line in told.lines() if told else ():
        artifacts.console.print(f"train: {line}", markup=False, soft_wrap=True)
    artifacts.table("losses", loss_curve(run, plan["run_id"]), "Losses, means over the steps since the row before")
    artifacts.markdown("train", "\n".join(f"- **{name}**: {value}" for name, value in plan.items() if name != "shards"))
    if told:
        artifacts.table("attempts", told.attempts, "Who trained, where and from which step")
        artifacts.markdown("continuity", f"**{told.headline}.** {' '.join(told.sentences)}")
    note = f"{settings.train.steps} steps on {plan['samples']} samples, {plan['start_says']}"
    if continued:
        note += f", continued after step {continued}"
    return StageResult("train", 1, 0, seconds=time.monotonic() - started, note=note, facts=plan)


def plan_training(run: Run, from_scratch: bool) -> dict[str, Any]:
    """What would be trained: the run's id, its catalog version and samples, and the adapter that it starts from.

    The id is a digest of all that decides the result, so that a restarted driver finds its own checkpoints.
    """
    version = run.catalog.version
    shards = run.training_shards(version)
    if not shards:
        raise UserError(
            f"There is nothing to train on in {run.settings.store_root}: run ingest, caption, segment and shard first."
        )
    start, says = start_of(run, from_scratch)
    inputs = run.inputs_digest(shards)
    return {
        "run_id": digest(inputs, start),
        "inputs": inputs,
        "catalog_version": version,
        "samples": sum(row.samples for row in shards),
        "start": start,
        "start_says": says,
    }


def damaged_shards(run: Run, plan: dict[str, Any]) -> list[str]:
    """The names of the shards that training is to do without, where that is asked for: all are looked at."""
    if run.settings.train.damaged_shards == "stop":
        return []
    rows, damaged = run.training_shards(plan["catalog_version"]), []
    for row in artifacts.tracked(rows, len(rows), "train: looking at shards"):
        try:
            load_shard(run.store, row)
        except (KeyError, ValueError) as error:
            damaged.append(row.shard)
            artifacts.console.print(f"train: without shard {row.shard} ({error})", markup=False, style="yellow")
    return damaged


def current_training(run: Run, from_scratch: bool) -> str:
    """The id of the training of what the catalog holds now: that of its release, if there is one, else the planned."""
    settled = run.settled(from_scratch)
    if settled is not None:
        return str(run.releases.card(settled)["run_id"])
    return str(plan_training(run, from_scratch)["run_id"])


def start_of(run: Run, from_scratch: bool) -> tuple[str, str]:
    """The adapter to start from, as a name and as a sentence: production's release, else the shipped one, else none."""
    if from_scratch or not run.settings.train.warm_start:
        return "scratch", "from scratch"
    release = run.releases.current(run.settings.publish.alias)
    if release is not None:
        return f"release:{release.id}", f"warm from release {release.number}"
    reference = ModelReference(location=f"zoo:{SHIPPED_RELEASE}", backend="moa")
    folder = model_files.local_folder(reference)
    # The shipped adapter fits the shipped base alone.
    if folder is not None and folder.is_dir() and run.settings.models.base.location == "zoo:base":
        return f"zoo:{model_files.fingerprint(reference)[:16]}", "warm from the shipped release 1"
    return "scratch", "from scratch"


def adapter_of(run: Run, start: str) -> dict[str, bytes] | None:
    """The files of the adapter that `start_of` named; None for a fresh one."""
    kind, _, name = start.partition(":")
    if kind == "scratch":
        return None
    if kind == "release":
        release = run.releases.resolve(name)
        return {file: run.releases.read(release, file) for file in ADAPTER_FILES}
    return {file: (model_files.ZOO / SHIPPED_RELEASE / file).read_bytes() for file in ADAPTER_FILES}


def trained_adapter(run: Run, run_id: str) -> dict[str, bytes]:
    """The averaged adapter of a finished run, by file name."""
    return {name: run.store.get(_key(run_id, name)) for name in ADAPTER_FILES}


def loss_curve(run: Run, run_id: str) -> list[dict[str, float]]:
    """The rows of a finished run's loss curve."""
    return list(finished_training(run, run_id)["curve"])


def loss_change(run: Run, run_id: str) -> tuple[dict[str, float], dict[str, float]]:
    """A finished run's losses before and after training, on the same samples with the same noise."""
    finished = finished_training(run, run_id)
    return finished["before"], finished["after"]


def finished_training(run: Run, run_id: str) -> dict[str, Any]:
    """What `finish` wrote down of a run: the plan, the loss curve, the losses before and after, what became of every
    sample."""
    return dict(json.loads(run.store.get(_key(run_id, "finished.json"))))


def lineage(run: Run, finished: dict[str, Any]) -> dict[str, Any]:
    """Where a training's result comes from, from its `finished_training`: for the release's card."""
    models, plan = run.settings.models, finished["plan"]
    return {
        **{name: plan[name] for name in ("run_id", "inputs", "samples", "start")},
        "catalog_version": plan["catalog_version"],
        "catalog_digest": run.catalog.content_digest(plan["catalog_version"]),
        "stages": run.fingerprints,
        "models": {name: describe(getattr(models, name)) for name in ("base", "clip", "captioner", "segmenter")},
        "train": run.settings.train.model_dump(mode="json"),
        "course": course_for_card(run.store, plan["run_id"], finished),
    }


def fit(run: Run, plan: dict[str, Any]) -> None:
    """Train what `plan_training` planned to its last step, from its latest checkpoint on. Needs a `ray_session`.

    Workers may fail as often as they like while checkpoints come between; WorkersFailed where none came. Who tries it,
    from where, and how far that came is written down beside the training.
    """
    continued = latest_step(run.store, plan["run_id"])
    while True:
        try:
            return _attempt(run, plan, continued)
        except WorkersFailed as error:
            before, failed = continued, error
        # A store that was away may have been why they failed.
        continued = patiently(lambda: latest_step(run.store, plan["run_id"]), lambda error: None)
        if continued <= before:
            raise WorkersFailed(f"{failed} Mend that, and start the same command again; it goes on where it was.")
        said = f"train: {failed} It goes on by itself: step {continued} is kept."
        artifacts.console.print(said, markup=False, style="yellow")
        plan["damaged"] = damaged_shards(run, plan)


def _attempt(run: Run, plan: dict[str, Any], continued: int) -> None:
    settings, run_id = run.settings.train, plan["run_id"]
    people = tuple(read_people(run)[: settings.pictures_people]) if settings.pictures_every else ()
    with AttemptLog(run.store, run_id, continued, run.settings.workspace) as log:
        shards, start = run.training_shards(plan["catalog_version"]), adapter_of(run, plan["start"])
        damaged = frozenset(plan["damaged"])
        job = TrainingJob(run.settings, run.store, run_id, shards, start, damaged, log.number, people)
        plan["damaged"] = sorted(_fit(run, job, log, continued))


def _fit(run: Run, job: TrainingJob, log: AttemptLog, continued: int) -> frozenset[str]:
    """The shards that were done without in the end."""
    import ray
    from ray.train import FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from flows.ray_storage import ray_storage

    settings = run.settings.train
    gpu = training_cluster.on_gpus(run.settings)
    scaling, collectives = training_cluster.scaling(settings, gpu), training_cluster.torch_config(settings, gpu)
    for look in (training_cluster.check_gpus, training_cluster.check_room):
        if short := look(run.settings, gpu):
            artifacts.console.print(f"train: {short}", markup=False, style="yellow")
    training_cluster.check_store(run.store, run.settings, job.run_id)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}  # where it is lost, so is the driver
    reporter: Any = ray.remote(num_cpus=0, label_selector=here)(ProgressReporter).remote()
    path, filesystem = ray_storage(run, f"runs/{job.run_id}/attempts")
    # A process that is frozen as a whole cannot watch itself.
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(settings.hang_seconds)
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job, "reporter": reporter},
        torch_config=collectives,
        scaling_config=scaling,
        run_config=RunConfig(
            name=f"{log.number:04d}",  # a new one each time: Ray must not take up what the old driver left
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=_MOST_FAILURES, preemption_grace_s=_GONE_SECONDS),
            worker_runtime_env=training_cluster.worker_environment(
                settings, hide_gpus=not gpu and training_cluster.gpus() > 0
            ),
            callbacks=[saving_before(settings.hang_seconds), training_cluster.telling_its_handle(reporter)],
        ),
    )
    pictures = LivePictures(run.store, job.run_id, settings.pictures_every, continued)
    with LiveMetrics(job.run_id, settings.steps, continued, run.settings.monitoring.prometheus_port) as live:
        future, ended = in_background(trainer.fit), False
        machines = MachineWatch(training_cluster.fewest_workers(settings), gpu)
        try:
            while not ended:
                ended = bool(wait([future], timeout=1.0).done)
                news: News = ray.get(reporter.ask.remote())
                for start in news.starts:
                    log.started(**start)
                for sentence in filter(None, (*news.said, machines.look(news.row))):
                    artifacts.console.print(f"train: {sentence}", markup=False, style="yellow")
                if news.refusal:  # trying again, as Ray would, does not mend it
                    raise UserError(news.refusal)
                live.show(news.row)
                if news.row is not None:
                    log.reached(int(news.row["step"]))
                    pictures.look(int(news.row["step"]))
        finally:
            if not ended:
                training_cluster.end(reporter, future)
        try:
            future.result()
        except TrainingFailedError as error:
            said = f"The training's workers failed too often, at last with: {_last_words(error)}."
            raise WorkersFailed(said) from error
        live.finished()
    left_out: frozenset[str] = ray.get(reporter.left_out.remote())
    ray.kill(reporter)
    return job.damaged | left_out


def _last_words(error: Exception) -> str:
    """Of each worker that failed, without the traces, which Ray prints."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    failures = {rank: getattr(one, "health_check_failure", one) for rank, one in failures.items()}
    lines = ([line.strip() for line in str(one).splitlines() if line.strip()] for one in failures.values())
    # A trace ends with its error; what is no trace begins with what happened.
    said = [one[-1] if any("Traceback" in line for line in one) else one[0] for one in lines if one]
    return "; ".join(dict.fromkeys(said))[:500].rstrip(".")


def finish(run: Run, plan: dict[str, Any]) -> None:
    """Put the last checkpoint's averaged adapter and losses into the run's folder; the checkpoints are then let go."""

    def failed(error: Exception) -> None:
        said = f"train: the result could not be kept ({type(error).__name__}: {error}); it is tried again, for a minute"
        artifacts.console.print(said, markup=False, style="yellow")

    with room_on_disk(tempfile.gettempdir()):
        step = patiently(lambda: _finish(run, plan), failed)
    if step != run.settings.train.steps:
        raise RuntimeError(f"run {plan['run_id']} ended at step {step} of {run.settings.train.steps}")
    patiently(lambda: _let_go(run, plan["run_id"]), failed)


def _finish(run: Run, plan: dict[str, Any]) -> int:
    """The last checkpoint's step; nothing else is done where it is not the training's last."""
    run_id = plan["run_id"]
    with tempfile.TemporaryDirectory(prefix="moa-finish-") as folder:
        step = fetch_checkpoint(run.store, run_id, Path(folder), _is_result)
        if step != run.settings.train.steps:
            return step
        for name in ADAPTER_FILES:
            run.store.put(_key(run_id, name), Path(folder, RELEASED, name).read_bytes())
        history = json.loads(Path(folder, HISTORY).read_text("utf-8"))
    run.store.put(_key(run_id, "finished.json"), json.dumps({"plan": plan, **history}).encode())
    return step


def _is_result(name: str) -> bool:
    """Of a checkpoint's files what outlives it; the others may be larger than this machine's memory."""
    return name == HISTORY or name.startswith(f"{RELEASED}/")


def _let_go(run: Run, run_id: str) -> None:
    """Delete a finished run's checkpoints; a kill may have come before."""
    for prefix in (folder_of(run_id), f"runs/{run_id}/attempts/"):
        for key in run.store.list(prefix):
            run.store.delete(key)
    run.store.sweep(f"runs/{run_id}")


def _key(run_id: str, name: str) -> str:
    return f"runs/{run_id}/{name}"
