"""Ray for as long as a block lasts, and the one way in which stages use it: a pool of actors over shards."""

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Protocol
from uuid import uuid4

import psutil

from infra.errors import UserError
from infra.settings import RaySettings
from infra.shard_feed import Batches, BatchQueues, Queue, numbers, opened, sealed

NO_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # "0": a Ray of this machine alone, on loopback, as on a Mac
ONE_MACHINE = "moa/one-machine"  # a node's label: no other machine can come to its cluster
_RAYLET_SECONDS = 2.0  # between two looks at whether the Ray that we are attached to lives
_EXIT_CODE = 75  # EX_TEMPFAIL: try again
_STARTS = 3  # of a Ray of our own
_NOT_UP = "timed out during startup"  # as Ray says after 30 seconds, which it gives itself


class ShardWorker(Protocol):
    """Made once per actor (which is when most load their model), then called once per shard."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]: ...


class StagedWorker:
    """A worker in three steps, of which only the middle one needs the model: while it runs for one item, the next one's
    bytes are fetched and the last one's are stored, each on a thread of its own."""

    def fetch(self, item: dict[str, Any]) -> Any:
        """What `work` needs; waits for storage."""
        raise NotImplementedError

    def work(self, item: dict[str, Any], fetched: Any) -> Any:
        """The work itself; never in two threads at once."""
        raise NotImplementedError

    def put_away(self, item: dict[str, Any], made: Any) -> dict[str, Any]:
        """Store what was made and return the item's result."""
        raise NotImplementedError

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        return self.put_away(item, self.work(item, self.fetch(item)))


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """Start a Ray on this machine, or attach to the cluster at settings.address; leave it as it was found.

    Inside another session this does nothing. Raises UserError when the cluster does not answer, or a Ray on this
    machine does not come up.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes on retries are not for the terminal
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # hide no GPU from tasks that ask for none
    if not settings.address:
        # Else Ray takes 127.0.0.1 for this machine's address in its network, and listens to everybody.
        os.environ.setdefault(NO_CLUSTER, "0")
    import ray

    if ray.is_initialized():
        yield
        return
    local = {"num_cpus": settings.num_cpus, "object_store_memory": settings.object_store_mb * 10**6}
    if settings.address:
        _check_listening(settings.address)
    try:
        _init(
            address=settings.address or "local",
            include_dashboard=None if settings.address else False,
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if settings.address else local),
        )
    except ConnectionError as error:
        if not settings.address:
            raise
        raise UserError(
            f"The Ray cluster at {settings.address!r} does not let this machine in: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN as on its head node (ray get-auth-token), or mend ray.address."
        ) from error
    try:
        with _ended_with_its_node(settings.address) if settings.address else nullcontext():
            yield
    finally:
        _queues.forget()
        ray.shutdown()


def _init(**options: Any) -> None:
    """`ray.init`; where a Ray of our own does not come up, what there is of it is ended, and another one started."""
    import ray

    for last in (*[False] * (_STARTS - 1), True):
        before = set(psutil.Process().children(recursive=True))
        try:
            ray.init(**options)
            return
        except Exception as error:
            if _NOT_UP not in str(error):
                raise
            for process in set(psutil.Process().children(recursive=True)) - before:
                with suppress(psutil.Error):
                    if f"{os.sep}ray{os.sep}" in " ".join(process.cmdline()):
                        process.kill()
            if last:
                raise UserError(
                    f"Ray did not come up on this machine in {_STARTS} tries: see what keeps the machine busy, and "
                    "start the same again."
                ) from error


@contextmanager
def _ended_with_its_node(address: str) -> Iterator[None]:
    """End this process when the Ray that it is attached to has died.

    Where another Ray has come up at the same address, a driver may wait on and on for actors that nobody remembers. An
    exception would not do: whoever waits is in Ray's own code, in several threads.
    """
    raylet, over = _raylet(), threading.Event()

    def watch(raylet: psutil.Process) -> None:
        while not over.wait(_RAYLET_SECONDS):
            if not raylet.is_running() or raylet.status() == psutil.STATUS_ZOMBIE:
                sys.stderr.write(f"The Ray at {address} died, and with it what ran there: the same again goes on.\n")
                sys.stderr.flush()
                os._exit(_EXIT_CODE)

    if raylet is not None:
        threading.Thread(target=watch, args=(raylet,), name="raylet-watch", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _raylet() -> psutil.Process | None:
    """The process by which this one is attached; it is on the same machine. None for a ray:// client, or unseen."""
    from ray._private.worker import _global_node

    if _global_node is None:
        return None
    socket_name = _global_node.raylet_socket_name
    for process in psutil.process_iter(["name", "cmdline"]):
        words = process.info["cmdline"] or ()  # None of one that has just died
        if process.info["name"] == "raylet" and f"--raylet_socket_name={socket_name}" in words:
            return process
    return None


def map_shards(
    worker_class: type[ShardWorker],
    items: Iterable[dict[str, Any]],
    concurrency: int,
    constructor_args: Sequence[Any],
    total: int | None = None,
    gpus: float = 0.0,
) -> Generator[dict[str, Any], None, None]:
    """Yield worker_class(*constructor_args)(item) for each item, each as soon as it is done, in any order.

    `concurrency` actors at most, each with `gpus` GPUs where the cluster has any. Items may come from a generator (then
    say how many in `total`, if it is known): they are taken as they are needed, and results that nobody takes hold the
    actors back. Both travel as they are (no table is made of them); they should be small: keys and rows, not pictures.

    An actor that dies, alone or with its node, is replaced and what it had in its hands is tried again: a batch of
    items, at most four seconds of work or a single item. An exception in a worker ends the iteration, a UserError as
    itself. Close it (`contextlib.closing`) where the loop over it may be left early: its actors stay until then. Where
    a worker is a `StagedWorker`, one item is fetched and another put away while a third is worked on.
    Needs a `ray_session`.
    """
    if isinstance(items, Sequence):
        total = len(items)
    items = iter(items)
    first = list(islice(items, 1))
    if not first:
        return  # and nothing is started
    import ray

    # Beside the driver: where these are lost, so is the driver.
    here = {"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
    queue = Queue(_queues.of_this_session(here), uuid4().hex)
    import ray.data  # only now: the queues' process starts meanwhile
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # byte: every number is a block of its own, the unit of scheduling and of retry
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    actors = min(concurrency, total or concurrency)
    staged = issubclass(worker_class, StagedWorker)
    try:
        batches = Batches(queue, chain(first, items), total, actors)
        batches.fill()
        dataset = ray.data.read_datasource(_numbered(queue), override_num_blocks=1, **here).map(
            _BatchWorker,
            compute=ray.data.ActorPoolStrategy(
                size=actors,
                max_tasks_in_flight_per_actor=2,
                max_concurrent_calls_per_actor=2 if staged else 1,
                enable_true_multi_threading=staged,
            ),
            fn_constructor_args=(queue, worker_class, tuple(constructor_args)),
            num_cpus=1,
            **({"num_gpus": gpus} if gpus and ray.cluster_resources().get("GPU", 0) else {}),
        )
        for table in dataset.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):
            for row in table["done"]:
                done: _Done = row
                if done.refusal:
                    raise UserError(done.refusal)
                results = opened(done.results)
                yield from results
                batches.finished(done.number, len(results), done.seconds)
                batches.fill()
    except RayError:
        _queues.forget()  # perhaps it was this actor that died
        raise
    finally:
        if ray.is_initialized():  # who is collected after the session must not start another
            queue.call("close")


class _Queues:
    """The actor that holds the queues of this process's session.

    It lives as long as somebody holds it, and while Ray takes it away it cannot be found again by name: so it is held
    here from its first use to the session's end.
    """

    def __init__(self) -> None:
        self._actor: Any = None
        self._lock = threading.Lock()

    def of_this_session(self, options: dict[str, Any]) -> Any:
        import ray

        with self._lock:
            if self._actor is None:
                self._actor = ray.remote(BatchQueues).options(**options).remote()
            return self._actor

    def forget(self) -> None:
        with self._lock:
            self._actor = None


_queues = _Queues()


def _numbered(queue: Queue) -> Any:
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    class BatchNumbers(Datasource):  # type: ignore[misc]  # Ray's classes are untyped
        """The numbers of the batches, from one read task."""

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(numbers, queue), metadata)]

    return BatchNumbers()


def _check_listening(address: str) -> None:
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return  # "auto": Ray itself knows where to look
    try:
        socket.create_connection((host, int(port)), timeout=10).close()  # ray.init would try for five minutes
    except (OSError, ValueError) as error:
        raise UserError(f"No Ray cluster answers at {address!r}: start it or mend ray.address.") from error


@dataclass(frozen=True)
class _Done:
    """A finished batch. A class of its own keeps Ray Data from taking the results apart into Arrow columns, where None
    and empty lists change type, and `sealed` from pickling them twice."""

    number: int
    results: bytes
    seconds: float = 0.0
    refusal: str = ""


class _BatchWorker:
    """The actor: a worker, or the reason why there is none. Ray wraps exceptions in its own; a UserError is text."""

    def __init__(self, queue: Queue, worker_class: type[ShardWorker], arguments: tuple[Any, ...]) -> None:
        self.queue, self.refusal, self.turn = queue, "", threading.Lock()
        try:
            self.worker = worker_class(*arguments)
        except UserError as error:
            self.refusal = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        number, results, started = int(row["number"]), [], time.monotonic()
        try:
            if self.refusal:
                raise UserError(self.refusal)
            for item in opened(ray.get(ray.get(self.queue.call("get", number))[0])):
                results.append(self._one(item))
        except UserError as error:
            return {"done": _Done(number, b"", refusal=str(error))}
        return {"done": _Done(number, sealed(results), time.monotonic() - started)}

    def _one(self, item: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(self.worker, StagedWorker):
            return self.worker(item)
        fetched = self.worker.fetch(item)
        with self.turn:  # a model is used by one thread at a time
            made = self.worker.work(item, fetched)
        return self.worker.put_away(item, made)
