"""A training that waits for machines says so: Ray waits for ever, and in silence."""

import time
from typing import Any

from flows.training_cluster import CPUS_INSTEAD

_QUIET_SECONDS = 60.0  # without a row of progress, before anybody looks at the machines


class MachineWatch:
    """Compares what a training needs with what the cluster has while no progress comes."""

    def __init__(self, workers: int, gpus: bool, seconds: float = _QUIET_SECONDS) -> None:
        """``workers`` that it needs at least, each with a GPU or a CPU."""
        self._workers, self._resource, self._seconds = workers, "GPU" if gpus else "CPU", seconds
        self._row: Any = None
        self._since, self._said = time.monotonic(), False

    def look(self, row: Any) -> str:
        """A sentence, once, where no new row has come for a while and too few machines are there; "" otherwise."""
        if row != self._row:
            self._row, self._since, self._said = row, time.monotonic(), False
        if self._said or time.monotonic() - self._since < self._seconds:
            return ""
        import ray

        room = sum(int(node["Resources"].get(self._resource, 0)) for node in ray.nodes() if node["Alive"])
        if room >= self._workers:
            return ""
        self._said = True
        return (
            f"waits for machines: the cluster has room for {room} of {self._workers} workers; it goes on when more "
            "come, or started again with a lower train.min_workers"
            + (f"; {CPUS_INSTEAD}" if self._resource == "GPU" else "")
        )
