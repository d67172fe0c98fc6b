"""Where a training's workers run: what each asks of the cluster, how they meet, and that all of them see the store."""

import secrets
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

from infra.errors import UserError
from infra.ray_session import ONE_MACHINE
from infra.settings import Settings, TrainSettings
from infra.storage import ObjectStore

CPUS_INSTEAD = "started again with --set train.gpus_per_worker=0 it trains on CPUs"
_END_SECONDS = 20.0  # for a killed controller's answer: a second, on a machine that has time
_ANSWER_SECONDS = 120.0  # of another machine: a new process that imports what it needs


def on_gpus(settings: Settings) -> bool:
    """Whether the workers get a GPU each, where it is asked for: in a cluster always, for machines with GPUs may come
    later than the driver; in the Ray of one machine, which cannot grow, if it has enough for the fewest workers."""
    options = settings.train
    return bool(options.gpus_per_worker and (_grows(settings) or gpus() >= fewest_workers(options)))


def check_gpus(settings: Settings, gpu: bool) -> str:
    """ "", or a sentence if the workers do without the GPUs that are asked for."""
    if gpu or not settings.train.gpus_per_worker:
        return ""
    return (
        f"on CPUs: {fewest_workers(settings.train)} workers want a GPU each, and this machine has {gpus():.0f} "
        "(train.gpus_per_worker)"
    )


def gpus() -> float:
    """How many the cluster has at this moment."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def fewest_workers(options: TrainSettings) -> int:
    """With how many workers the training goes on at least."""
    return options.min_workers or options.workers


def scaling(options: TrainSettings, gpu: bool) -> Any:
    """Ray's `ScalingConfig`: how many workers, what each of them asks for, and on which machines."""
    from ray.train import ScalingConfig

    fewest = fewest_workers(options)
    return ScalingConfig(
        num_workers=(fewest, options.workers) if fewest < options.workers else options.workers,
        use_gpu=gpu,
        resources_per_worker=worker_resources(options, gpu),
        placement_strategy=options.placement.upper(),
        elastic_resize_monitor_interval_s=options.resize_seconds,
    )


def worker_resources(options: TrainSettings, gpu: bool) -> dict[str, float]:
    """What Ray sets aside for a worker: a CPU for itself and one for each process that prepares its batches."""
    return {"CPU": 1 + options.loader_workers, **({"GPU": options.gpus_per_worker} if gpu else {})}


def torch_config(options: TrainSettings, gpu: bool) -> Any:
    """Ray's `TorchConfig`: the process group. UserError where the collectives that are asked for cannot do it."""
    from ray.train.torch import TorchConfig

    if options.collectives == "nccl" and not gpu:
        raise UserError("NCCL works between GPUs, and this training has none: --set train.collectives=auto.")
    if options.collectives == "gloo" and gpu and options.sharding != "none":
        raise UserError("gloo gathers no weights between GPUs: --set train.collectives=auto, or train.sharding=none.")
    return TorchConfig(
        backend=None if options.collectives == "auto" else options.collectives,
        # A lost worker is noticed by its peers at once, or by the watchdog; the collectives need wait no longer. (Ray
        # sets TORCH_NCCL_ASYNC_ERROR_HANDLING=1: a worker whose NCCL waited so long is ended, and the run goes on.)
        timeout_s=int(options.hang_seconds) + 60,
    )


def worker_environment(options: TrainSettings, hide_gpus: bool) -> dict[str, Any]:
    """Ray's runtime environment of the workers alone: the driver and other actors keep theirs."""
    variables = dict(pair.split("=", 1) for pair in options.nccl_env)
    if hide_gpus:
        variables["CUDA_VISIBLE_DEVICES"] = ""  # else all of a machine's workers take its first GPU
    return {"env_vars": variables} if variables else {}


def check_room(settings: Settings, gpu: bool) -> str:
    """ "", or a sentence if not all workers find room at once; in the Ray of one machine, which cannot grow, a
    UserError if not even the fewest do."""
    options, held = settings.train, 0
    needed, fewest = worker_resources(options, gpu), fewest_workers(options)
    for node in _nodes():
        held += int(min(node["Resources"].get(name, 0.0) // amount for name, amount in needed.items()))
    if held >= options.workers:
        return ""
    each = f"{needed['CPU']:.0f} CPUs" + (f" and {needed['GPU']:.0f} GPU" if gpu else "")
    lack = f"of {options.workers} workers with {each} each (1 + train.loader_workers CPUs) {held} find room"
    if held < fewest and not _grows(settings):
        anew = " and start moa up anew" if settings.ray.address else ""
        raise UserError(
            f"In the Ray of this machine, {lack}: raise ray.num_cpus ({settings.ray.num_cpus}){anew}, or lower "
            "train.loader_workers or train.workers."
        )
    if held >= fewest:
        return f"{lack}; it begins with them"
    return f"{lack}; machines are waited for" + (f", or {CPUS_INSTEAD}" if gpu else "")


def check_store(store: ObjectStore, settings: Settings, run_id: str) -> None:
    """UserError if a machine on which workers may run does not see what this one writes: nothing would come back."""
    import ray
    from ray.exceptions import GetTimeoutError

    here = ray.get_runtime_context().get_node_id()
    others = [node for node in _nodes() if node["NodeID"] != here and node["Resources"].get("CPU")]
    if not others:
        return
    key, token = f"runs/{run_id}/seen-{secrets.token_hex(8)}", secrets.token_bytes(16)
    store.put(key, token)
    try:
        look: Any = ray.remote(num_cpus=0, max_retries=0)(_look)
        looks = [look.options(label_selector={"ray.io/node-id": node["NodeID"]}).remote(store, key) for node in others]
        for node, reference in zip(others, looks, strict=True):
            machine = f"The machine {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                seen = ray.get(reference, timeout=_ANSWER_SECONDS)
            except GetTimeoutError as error:
                raise UserError(
                    f"{machine} did not look into the store within {_ANSWER_SECONDS:.0f} seconds: take it out of the "
                    "Ray cluster, or see what keeps it."
                ) from error
            if isinstance(seen, str):
                raise UserError(f"{machine} cannot use the store. {seen}")
            if seen != token:
                raise UserError(
                    f"{machine} does not see what this one writes to {settings.store_root}, and checkpoints would be "
                    "lost: --set storage.root=s3://bucket/prefix, or a folder that all machines share."
                )
    finally:
        store.delete(key)


def _look(store: ObjectStore, key: str) -> bytes | str | None:
    """The object's bytes, None where there is none, or why the store cannot be used."""
    try:
        return store.get(key)
    except KeyError:
        return None
    except (UserError, OSError) as error:
        return str(error)


def _grows(settings: Settings) -> bool:
    """Whether machines may come to the cluster: not to a Ray of our own, nor to that of `moa up`."""
    return bool(settings.ray.address) and not any(ONE_MACHINE in node["Labels"] for node in _nodes())


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def telling_its_handle(reporter: Any) -> Any:
    """A callback of Ray Train's controller: the reporter is told its handle, which Ray Train keeps to itself."""
    from ray.train.v2._internal.execution.callback import ControllerCallback

    class TellingItsHandle(ControllerCallback):  # type: ignore[misc]  # Ray's classes are untyped
        def after_controller_start(self, train_run_context: Any) -> None:
            import ray

            reporter.controlled.remote([ray.get_runtime_context().current_actor])

    return TellingItsHandle()


def end(reporter: Any, training: Future[Any]) -> None:
    """End Ray Train's controller, and with it its workers, and wait for the thread that waits for it.

    A Ray that is shut down under another thread's call may take the whole process with it, and what it had to say.
    """
    import ray
    from ray.exceptions import RayError

    with suppress(RayError):  # a Ray that is gone has nothing to end
        controllers = ray.get(reporter.controlling.remote(), timeout=_END_SECONDS)
        for controller in controllers:
            ray.kill(controller)
        if controllers:
            wait([training], timeout=_END_SECONDS)
