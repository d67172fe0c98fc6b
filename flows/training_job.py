"""What the driver and the training's workers agree on: the job, and how they tell each other what happens.

No torch and no Prefect here: the reporter's process need not load them.
"""

from dataclasses import dataclass
from typing import Any

from infra.errors import UserError
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
    """An actor that rank 0 tells how far it is, any rank what the user must know or mend, and that the driver asks."""

    def __init__(self) -> None:
        self.row: dict[str, float] | None = None
        self.refusal, self.said = "", list[str]()

    def tell(self, row: dict[str, float]) -> None:
        """`StepMetrics.as_row()`: plain numbers."""
        self.row = row

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def refuse(self, refusal: str) -> None:
        self.refusal = refusal

    def ask(self) -> tuple[dict[str, float] | None, str, list[str]]:
        """The latest row, what must be mended, and what was said since the last time."""
        said, self.said = self.said, []
        return self.row, self.refusal, said


def work(config: dict[str, Any]) -> None:
    """What Ray Train calls in each worker. What the user must mend is told to the reporter: Ray would wrap it up."""
    import ray

    from flows.training_loop import train_worker

    try:
        train_worker(config)
    except UserError as error:
        ray.get(config["reporter"].refuse.remote(str(error)))
        raise
