"""A training's latest checkpoint on each machine that trains: fetched by one of the machine's workers, read by all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from flows.checkpoints import fetch_checkpoint
from infra.storage import ObjectStore


@contextmanager
def checkpoint_here(
    store: ObjectStore, run_id: str, machine: int, first_here: bool, workers: int
) -> Iterator[tuple[Path, int]]:
    """The folder with its files and its step; step 0 where there is none. All workers enter and leave.

    machine, first_here: the number of this worker's machine, and whether it is the one that fetches. The folder goes
    when the last worker leaves.
    """
    with tempfile.TemporaryDirectory(prefix="moa-resume-") as folder:
        step = fetch_checkpoint(store, run_id, Path(folder)) if first_here else 0
        told: list[Any] = [(machine, folder, step)]
        if workers > 1:
            told = [None] * workers
            distributed.all_gather_object(told, (machine, folder, step) if first_here else None)
        fetched = {where: (path, found) for where, path, found in filter(None, told)}
        if len({found for _, found in fetched.values()}) > 1:
            raise RuntimeError(f"the machines found different checkpoints of run {run_id}: {fetched}")
        yield Path(fetched[machine][0]), fetched[machine][1]
        if workers > 1:
            distributed.barrier()
