"""What the driver and the training's workers agree on: the job, and how they tell each other what happens.

No torch and no Prefect here: the reporter's process need not load them.
"""

import tempfile
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from infra.errors import DamagedObject, UserError, room_on_disk
from infra.settings import Settings
from infra.storage import ObjectStore
from preprocessing.catalog import ShardRow

# In a checkpoint: the loss curve, the losses before and after, the steps that were skipped, the starts of workers whose
# steps are in its weights, and the tallies of what those steps read.
HISTORY = "history.json"


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker is told. `start`: an adapter's files to start from, None = a fresh adapter; `damaged`: names of
    shards to do without; `attempt`: its number in the history; `people`: whom to draw, as `evaluation_people` reads
    them, none = nobody."""

    settings: Settings
    store: ObjectStore
    run_id: str
    shards: list[ShardRow]
    start: dict[str, bytes] | None
    damaged: frozenset[str] = frozenset()
    attempt: int = 0
    people: tuple[dict[str, Any], ...] = ()


class News(NamedTuple):
    """What a driver is told when it asks."""

    row: dict[str, float] | None
    """The latest one."""
    refusal: str
    """What must be mended; "" = nothing."""
    said: list[str]
    """Sentences since the last time, and the starts of workers: `AttemptLog.started`'s arguments."""
    starts: list[dict[str, Any]]


class ProgressReporter:
    """An actor that rank 0 tells how far it is, any rank what the user must know or mend, and that the driver asks.

    It outlives the workers, and so it also knows which shards those that are started next have to do without.
    """

    def __init__(self) -> None:
        self.row: dict[str, float] | None = None
        self.refusal, self.said, self.starts = "", list[str](), list[dict[str, Any]]()
        self.damaged = set[str]()
        self.controllers = list[Any]()

    def tell(self, row: dict[str, float]) -> None:
        """`StepMetrics.as_row()`: plain numbers."""
        self.row = row

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def refuse(self, refusal: str) -> None:
        self.refusal = refusal

    def started(self, step: int, workers: int, hosts: list[str]) -> None:
        """All workers have taken up the checkpoint of a step."""
        self.starts.append({"step": step, "workers": workers, "hosts": hosts})

    def leave_out(self, shard: str, reason: str) -> None:
        """A shard was damaged while the training ran: its name, and how."""
        self.damaged.add(shard)
        self.say(f"without shard {shard} from here on ({reason})")

    def left_out(self) -> frozenset[str]:
        return frozenset(self.damaged)

    def controlled(self, by: list[Any]) -> None:
        """Ray Train's controller has begun: its handle, in a list, for Ray looks up what is not in one."""
        self.controllers += by

    def controlling(self) -> list[Any]:
        return self.controllers

    def ask(self) -> News:
        """What is new."""
        news = News(self.row, self.refusal, self.said, self.starts)
        self.said, self.starts = [], []
        return news


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


def picture_key(run_id: str, step: int) -> str:
    """Where the grid of pictures of a step lies in the store."""
    return f"{picture_folder(run_id)}step-{step:06d}.png"


def picture_folder(run_id: str) -> str:
    """The prefix of a run's grids."""
    return f"runs/{run_id}/pictures/"


def picture_step(key: str) -> int:
    """The step of the grid at a key."""
    return int(key.rpartition("step-")[2].removesuffix(".png"))
