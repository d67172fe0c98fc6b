"""A training's latest checkpoint on each machine that trains: fetched by one of the machine's workers, read by all."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from flows.checkpoints import fetch_checkpoint
from infra.errors import UserError, room_on_disk
from infra.storage import ObjectStore


@contextmanager
def checkpoint_here(
    store: ObjectStore, run_id: str, below: Path, machine: int, first_here: bool, workers: int
) -> Iterator[tuple[Path, int]]:
    """The folder with its files and its step; step 0 where there is none. All workers enter and leave.

    below: a folder for it, which no other machine uses: its locks would not be seen. machine, first_here: the number of
    this worker's machine, and whether it is the one that fetches. The checkpoint goes when the last worker leaves.
    UserError where it has no place.
    """
    with _own_folder(below) if first_here else nullcontext(below) as folder:
        step = 0
        if first_here:
            with room_on_disk(str(folder)):
                step = fetch_checkpoint(store, run_id, folder)
        told: list[Any] = [(machine, str(folder), step)]
        if workers > 1:
            told = [None] * workers
            distributed.all_gather_object(told, (machine, str(folder), step) if first_here else None)
        fetched = {where: (path, found) for where, path, found in filter(None, told)}
        if len({found for _, found in fetched.values()}) > 1:
            raise RuntimeError(f"the machines found different checkpoints of run {run_id}: {fetched}")
        yield Path(fetched[machine][0]), fetched[machine][1]
        if workers > 1:
            distributed.barrier()


@contextmanager
def _own_folder(below: Path) -> Iterator[Path]:
    """An empty one that goes with the block. Those of processes that were killed in theirs, gigabytes each, go first:
    a process holds a lock on its own, which the system lets go with it."""
    try:
        below.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"No checkpoint can be fetched to {below} ({error.strerror}): choose another --workspace."
        ) from error
    with ExitStack() as own:
        with _locked(below):
            for other in below.iterdir():
                with suppress(OSError), _locked(other, fcntl.LOCK_NB):
                    shutil.rmtree(other, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=below))
            own.enter_context(_locked(folder))
        own.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def _locked(folder: Path, waiting: int = 0) -> Iterator[None]:
    """No other process has it meanwhile; BlockingIOError where one has it, and LOCK_NB says not to wait."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | waiting)
        yield
    finally:
        os.close(descriptor)
