"""What the driver and the training's workers agree on: the job, and how they tell each other what happens.

No torch and no Prefect here: the reporter's process need not load them.
"""

import tempfile
from dataclasses import dataclass, replace
from typing import Any

from infra.errors import DamagedObject, UserError, room_on_disk
from infra.settings import Settings
from infra.storage import ObjectStore
from preprocessing.catalog import ShardRow

HISTORY = "history.json"  # in a checkpoint: the loss curve, the losses before and after, the steps that were skipped


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker is told. `start`: an adapter's files to start from, None = a fresh adapter; `damaged`: names of
    shards to do without."""

    settings: Settings
    store: ObjectStore
    run_id: str
    shards: list[ShardRow]
    start: dict[str, bytes] | None
    damaged: frozenset[str] = frozenset()


class ProgressReporter:
    """An actor that rank 0 tells how far it is, any rank what the user must know or mend, and that the driver asks.

    It outlives the workers, and so it also knows which shards those that are started next have to do without.
    """

    def __init__(self) -> None:
        self.row: dict[str, float] | None = None
        self.refusal, self.said, self.damaged = "", list[str](), set[str]()

    def tell(self, row: dict[str, float]) -> None:
        """`StepMetrics.as_row()`: plain numbers."""
        self.row = row

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def refuse(self, refusal: str) -> None:
        self.refusal = refusal

    def leave_out(self, shard: str, reason: str) -> None:
        """A shard was damaged while the training ran: its name, and how."""
        self.damaged.add(shard)
        self.say(f"without shard {shard} from here on ({reason})")

    def left_out(self) -> frozenset[str]:
        return frozenset(self.damaged)

    def ask(self) -> tuple[dict[str, float] | None, str, list[str]]:
        """The latest row, what must be mended, and what was said since the last time."""
        said, self.said = self.said, []
        return self.row, self.refusal, said


def work(config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker. What the user must mend is told to the reporter: Ray would wrap it up.

    A shard that is damaged meanwhile, where such ones are skipped, ends the worker: Ray starts all of them again, and
    all of them go on without it.
    """
    import ray

    from flows.training_loop import train_worker

    job, reporter = config["job"], config["reporter"]
    job = replace(job, damaged=job.damaged | ray.get(reporter.left_out.remote()))
    try:
        with room_on_disk(tempfile.gettempdir()):
            train_worker({"job": job, "reporter": reporter})
    except UserError as error:
        if isinstance(error, DamagedObject) and job.settings.train.damaged_shards == "skip":
            names = [row.shard for row in job.shards if row.object_key == error.key]
            ray.get([reporter.leave_out.remote(name, str(error)) for name in names])
        else:
            ray.get(reporter.refuse.remote(str(error)))
        raise
