"""A training's checkpoints in the store: written beside the training, each visible whole or not at all.

`runs/RUN/checkpoints/step-00000100/` holds safetensors and JSON and, written last, a list of their digests. Only a
folder whose files agree with its list counts, so one that a kill cut short is passed over. (No torch here.)
"""

import errno
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from infra.large_objects import download
from infra.storage import ObjectStore, check_key

RELEASED = "released"  # a folder in the last one: what is released
_LIST = "complete.json"
_STEP = re.compile(r"(.+/step-(\d{8}))/")
_TRIES = 7  # of what ends the training, each after twice the pause before: a minute in all
_AGAIN = "it is tried again, for a minute"
_Result = TypeVar("_Result")
Files = Callable[[], Iterable[tuple[str, bytes]]]
Wanted = Callable[[str], bool]


def folder_of(run_id: str) -> str:
    """The prefix of a run's checkpoints."""
    return f"runs/{run_id}/checkpoints/"


class CheckpointWriter:
    """Writes one checkpoint at a time on a thread, and removes those that are not to be kept.

    Kept are the `keep_last` latest, the one of the lowest loss, and those whose step is a multiple of `keep_every`
    (0: none). What cannot be written is told and costs only itself: the training goes on, and tries again with its next
    checkpoint.
    """

    def __init__(
        self, store: ObjectStore, run_id: str, keep_last: int, keep_every: int, tell: Callable[[str], object]
    ) -> None:
        self._store, self._folder, self._tell = store, folder_of(run_id), tell
        self._keep_last, self._keep_every = keep_last, keep_every
        store.sweep(self._folder.rstrip("/"))
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, step: int, files: Files, loss: float) -> None:
        """Begin to write. Waits for the one before."""
        self.wait()

        def write() -> None:
            self._write(step, files, loss)
            self._remove_others(step)

        self._writing = self._thread.submit(write)

    def when_written(self, call: Callable[[object], object]) -> None:
        """Call once the one that is being written is there, or could not be written."""
        if self._writing is None:
            call(None)
        else:
            self._writing.add_done_callback(call)

    def finish(self, step: int, files: Files, loss: float) -> None:
        """Write the last one and wait for it; the error of the last try where none succeeds."""
        self.wait()
        patiently(lambda: self._write(step, files, loss), lambda error: self._tell(_said(step, error, _AGAIN)))
        self._remove_others(step)
        self._thread.shutdown()

    def wait(self) -> None:
        """Until the one before is written: two in memory at once would be one too many."""
        if self._writing is None:
            return
        error = self._writing.exception()
        self._writing = None
        if error is not None:
            self._tell(_said(0, error, "the training goes on without it"))

    def _write(self, step: int, files: Files, loss: float) -> None:
        prefix = f"{self._folder}step-{step:08d}"
        listed = dict[str, str]()
        try:
            for name, data in files():
                self._store.put(f"{prefix}/{name}", data)
                listed[name] = hashlib.sha256(data).hexdigest()
            self._store.put(f"{prefix}/{_LIST}", json.dumps({"files": listed, "loss": loss}).encode())
        except Exception:
            with suppress(Exception):  # what was written must not keep a full disk full
                for name in (_LIST, *listed):
                    self._store.delete(f"{prefix}/{name}")
            raise

    def _remove_others(self, step: int) -> None:
        """Once this step's is there: it stays, whatever becomes of the others."""
        try:
            self._keep_few(step)
        except Exception as error:
            said = f"older checkpoints could not be removed ({type(error).__name__}: {error})"
            self._tell(f"{said}; that is tried again after the next one")

    def _keep_few(self, step: int) -> None:
        keys, losses = self._store.list(self._folder), dict[int, float]()
        for key in keys:
            if key.endswith(f"/{_LIST}") and (found := _STEP.match(key)):
                with suppress(KeyError, TypeError, ValueError):  # a damaged list: nobody resumes from that one
                    losses[int(found[2])] = float(json.loads(self._store.get(key))["loss"])
        keep = {*sorted(losses)[-self._keep_last :], min(losses, key=lambda one: losses[one])}
        keep |= {one for one in losses if self._keep_every and one % self._keep_every == 0}
        for key in sorted(keys, key=lambda key: not key.endswith(_LIST)):  # its list first: no half is ever complete
            found = _STEP.match(key)
            if found and int(found[2]) < step and int(found[2]) not in keep:
                self._store.delete(key)


def patiently(work: Callable[[], _Result], failed: Callable[[Exception], object]) -> _Result:
    """Try for a minute: a store that is away comes back, a full disk is cleared. The last try's error where none
    succeeds; `failed` is told of the others."""
    for attempt in range(_TRIES - 1):
        try:
            return work()
        except Exception as error:
            failed(error)
            time.sleep(2.0**attempt)
    return work()


def _said(step: int, error: BaseException, then: str) -> str:
    which = f"the checkpoint of step {step}" if step else "a checkpoint"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{which} does not fit on the store's disk: make room; {then}"
    return f"{which} could not be written ({type(error).__name__}: {error}); {then}"


def latest_step(store: ObjectStore, run_id: str) -> int:
    """The step of the run's latest checkpoint that has a list; 0 where there is none."""
    keys = store.list(folder_of(run_id))
    return max((int(found[2]) for key in keys if key.endswith(_LIST) and (found := _STEP.match(key))), default=0)


def fetch_checkpoint(store: ObjectStore, run_id: str, folder: Path, among: Wanted = lambda name: True) -> int:
    """Copy the run's latest complete checkpoint into an empty folder and return its step; 0 where there is none.

    `among` says which of its files are wanted; complete are those.
    """
    found = {match[1]: int(match[2]) for key in store.list(folder_of(run_id)) if (match := _STEP.match(key))}
    for prefix in sorted(found, key=lambda prefix: found[prefix], reverse=True):
        if _fetched(store, prefix, folder, among):
            return found[prefix]
    return 0


def _fetched(store: ObjectStore, prefix: str, folder: Path, among: Wanted) -> bool:
    """Whether the checkpoint's files are in the folder, file by file, for some are larger than the memory."""
    try:
        listed = json.loads(store.get(f"{prefix}/{_LIST}"))["files"]
        for name in filter(among, listed):
            key, path = check_key(f"{prefix}/{name}"), folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            download(store, key, path)
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != listed[name]:
                    return False
    except (KeyError, TypeError, ValueError):
        return False
    return True
