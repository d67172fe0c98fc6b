"""Which samples the workers of a training took in which step: noted in each worker, read and judged by the tests.

A worker notes a batch when its loop takes it, one line of JSON in a file of its own: a kill leaves at most the last
line in pieces.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

_FOLDER = "steps"  # in the workspace


@dataclass(frozen=True)
class Taken:
    """A worker's share of a step. `at`: this machine's monotonic clock; `step` from 0 on; `node`: Ray's name of it."""

    at: float
    pid: int
    node: str
    rank: int
    workers: int
    step: int
    keys: tuple[str, ...]


def noting_work(config: dict[str, Any]) -> None:
    """`flows.training_job.work`, every batch that the loop takes noted."""
    import ray

    from flows import training_job

    with noted(config["job"].settings.workspace, ray.get_runtime_context().get_node_id()):
        training_job.work(config)


@contextmanager
def noted(workspace: Path, node: str = "") -> Iterator[None]:
    """Every batch that a training loop of this process takes is noted in the workspace."""
    from flows import training_loop
    from flows.training_samples import StepBatch, StepBatches

    folder, ready_made = Path(workspace, _FOLDER), training_loop.batches
    folder.mkdir(exist_ok=True)

    def batches(source: StepBatches, steps: Sequence[int], *options: Any, **more: Any) -> Iterator[StepBatch]:
        with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8", buffering=1) as file:
            for step, one in zip(steps, ready_made(source, steps, *options, **more), strict=True):
                taken = Taken(time.monotonic(), os.getpid(), node, source.rank, source.workers, step, one.keys)
                file.write(json.dumps(asdict(taken)) + "\n")
                yield one

    with patch.object(training_loop, "batches", batches):
        yield


def steps_taken(workspace: Path) -> list[Taken]:
    """All that was noted, in the order of time."""
    found = []
    for path in (workspace / _FOLDER).glob("*.jsonl"):
        whole = path.read_text("utf-8").rpartition("\n")[0]
        for line in whole.splitlines():
            values = json.loads(line)
            found.append(Taken(**values | {"keys": tuple(values["keys"])}))
    return sorted(found, key=lambda one: one.at)


def check_epochs(taken: Collection[Taken], steps: int, batch_size: int, keys: Collection[str]) -> None:
    """AssertionError unless the steps that count are all there and each epoch has every key exactly once.

    A step counts as it was done last: what came after the checkpoint at which a restart goes on is done again.
    """
    last: dict[int, dict[int, Taken]] = {}
    for one in sorted(taken, key=lambda one: one.at):
        ranks = last.setdefault(one.step, {})
        if any(other.workers != one.workers for other in ranks.values()):
            ranks.clear()  # it is done again by more workers or fewer
        ranks[one.rank] = one
    assert sorted(last) == list(range(steps))
    seen: list[str] = []
    for step in range(steps):
        ranks = last[step]
        (workers,) = {one.workers for one in ranks.values()}
        assert sorted(ranks) == list(range(workers)), f"step {step + 1} was done by the ranks {sorted(ranks)}"
        batch = [key for rank in sorted(ranks) for key in ranks[rank].keys]
        assert len(batch) == batch_size, f"step {step + 1} had {len(batch)} samples"
        seen += batch
    for first in range(0, len(seen), len(keys)):
        epoch = Counter(seen[first : first + len(keys)])
        assert max(epoch.values()) == 1, f"twice from sample {first} on: {epoch.most_common(3)}"
        assert set(epoch) <= set(keys)
        if first + len(keys) <= len(seen):
            assert set(epoch) == set(keys), f"missing from sample {first} on: {set(keys) - set(epoch)}"
