"""Before Ray Train starts healthy workers again in another number, they save: Ray itself tells them nothing.

`saving_before` is for the controller; the rest is for the workers, whose processes have one training and its two events
each. No torch here: the controller need not load it.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

_LOOK_SECONDS = 0.2
_asked, _saved = threading.Event(), threading.Event()


def ask() -> None:
    """This process's training is to save."""
    _asked.set()


def asked() -> bool:
    """Whether it is to save; told once."""
    if not _asked.is_set():
        return False  # and not cleared: it may be asked just now
    _asked.clear()
    return True


def saved(*_: Any) -> None:
    """It has, or there is nothing more to save: its part of the training ended, well or not."""
    _saved.set()


def has_saved() -> bool:
    return _saved.is_set()


def saving_before(seconds: float) -> Any:
    """A callback of Ray Train's controller: rank 0 is asked to save before a resize, which waits so long at most."""
    from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

    class SavingBefore(ControllerCallback, WorkerGroupCallback):  # type: ignore[misc]  # Ray's classes are untyped
        """Knows the workers, by rank, for as long as they are healthy: from lost ones there is nothing to wait for."""

        workers: Sequence[Any] = ()

        def after_worker_group_start(self, worker_group: Any) -> None:
            self.workers = sorted(worker_group.get_workers(), key=lambda one: one.distributed_context.world_rank)

        def before_worker_group_shutdown(self, worker_group: Any) -> None:
            self.workers = ()

        def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
            self.workers = ()

        def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
            if self.workers:
                _have_save(self.workers, seconds)

    return SavingBefore()


def _have_save(workers: Sequence[Any], seconds: float) -> None:
    """Until the first has saved, one has ended or is lost, or the time is over: then what came since the last
    checkpoint is done again, as after any loss. All are asked: the first may wait in its collectives for a failed one.
    """
    import ray
    from ray.exceptions import RayError

    ends = time.monotonic() + seconds
    try:
        ray.get(workers[0].execute_async(ask), timeout=seconds)
        while time.monotonic() < ends:
            if any(ray.get([one.execute_async(has_saved) for one in workers], timeout=seconds)):
                return
            time.sleep(_LOOK_SECONDS)
    except RayError:
        return
