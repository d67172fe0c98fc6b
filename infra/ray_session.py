"""Ray for as long as a block lasts, and the one way in which stages use it: a pool of actors over shards."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from infra.errors import UserError
from infra.settings import RaySettings


class ShardWorker(Protocol):
    """Made once per actor (it loads the model), then called once per shard."""

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]: ...


@contextmanager
def ray_session(settings: RaySettings) -> Iterator[None]:
    """Start a Ray on this machine, or attach to the cluster at settings.address; leave it as it was found.

    Inside another session this does nothing. Raises UserError when the cluster does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes on retries are not for the terminal
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # hide no GPU from tasks that ask for none
    import ray

    if ray.is_initialized():
        yield
        return
    local = {"num_cpus": settings.num_cpus, "object_store_memory": settings.object_store_mb * 10**6}
    if settings.address:
        _check_listening(settings.address)
    ray.init(
        address=settings.address or "local",
        include_dashboard=None if settings.address else False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        **({} if settings.address else local),
    )
    try:
        yield
    finally:
        ray.shutdown()


def map_shards(
    worker_class: type[ShardWorker], items: Sequence[dict[str, Any]], concurrency: int, constructor_args: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """Yield worker_class(*constructor_args)(item) for each item, each as soon as it is done, in any order.

    `concurrency` actors at most. Items and results travel as they are (no table is made of them); they should be small:
    keys and rows, not pictures. An actor that dies is replaced and its item tried again; an exception in a worker
    ends the iteration, a UserError as itself. Needs a `ray_session`.
    """
    if not items:
        return
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"item": _Sealed(item)} for item in items]
    # One block per shard: a block is what is scheduled, retried and handed on.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Unsealing,
        compute=ray.data.ActorPoolStrategy(size=min(concurrency, len(items))),
        fn_constructor_args=(worker_class, tuple(constructor_args)),
    )
    for row in dataset.iter_rows():
        if row["refusal"]:
            raise UserError(row["refusal"])
        yield row["result"].value


def _check_listening(address: str) -> None:
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return  # "auto": Ray itself knows where to look
    try:
        socket.create_connection((host, int(port)), timeout=10).close()  # ray.init would try for five minutes
    except (OSError, ValueError) as error:
        raise UserError(f"No Ray cluster answers at {address!r}: start it or mend ray.address.") from error


class _Sealed:
    """Keeps Ray Data from taking a dictionary apart into Arrow columns, where None and empty lists change type."""

    def __init__(self, value: dict[str, Any]) -> None:
        self.value = value


class _Unsealing:
    """The actor: a worker, or the reason why there is none. Ray wraps exceptions in its own; a UserError is text."""

    def __init__(self, worker_class: type[ShardWorker], arguments: tuple[Any, ...]) -> None:
        self.refusal = ""
        try:
            self.worker = worker_class(*arguments)
        except UserError as error:
            self.refusal = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.refusal:
                raise UserError(self.refusal)
            return {"result": _Sealed(self.worker(row["item"].value)), "refusal": ""}
        except UserError as error:
            return {"result": _Sealed({}), "refusal": str(error)}
