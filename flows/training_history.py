"""Who ran a training, where, from which step and how far: small objects beside it, so that no kill loses what was.

    runs/RUN/history/0001-begun.json       a driver began: who, where, when, after which step; created, never replaced
    runs/RUN/history/0001-workers-01.json  its workers started, and each time that they started again
    runs/RUN/history/0001-reached.json     the last step that it heard of; replaced every few seconds
    runs/RUN/history/0001-ended.json       how it ended, where it could still say so

Every attempt has a number of its own, whoever begins it. The driver writes all of it. (No torch here.)
"""

import json
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from flows.artifacts import console
from infra.access_log import user_name
from infra.errors import UserError
from infra.storage import ObjectStore

FINISHED = "finished"
_OBJECT = re.compile(r".+/(\d{4,})-(begun|workers|reached|ended)(?:-\d+)?\.json")


@dataclass(frozen=True)
class WorkersStart:
    """The workers of an attempt began."""

    time: str
    step: int
    """So many steps were done: those of the checkpoint that they took up."""
    heard: int
    """The last step that the attempt had heard of before, 0 = it was its first start."""
    workers: int
    hosts: list[str]


@dataclass(frozen=True)
class Attempt:
    """One driver's run of a training, as far as it could still write it down."""

    number: int
    time: str
    user: str
    host: str
    workspace: str
    continued: int
    """The step of the checkpoint that was there when it began."""
    starts: tuple[WorkersStart, ...] = ()
    reached: int = 0
    """The last step that it heard of."""
    heard_at: str = ""
    ended: str = ""
    how: str = ""
    """`FINISHED`, or why it ended; "" where nobody was left to say so."""


def read_attempts(store: ObjectStore, run_id: str) -> list[Attempt]:
    """The attempts at a training, the first one first."""
    about: dict[int, dict[str, Any]] = {}
    starts: dict[int, list[WorkersStart]] = {}
    for key in store.list(_folder(run_id)):
        if match := _OBJECT.fullmatch(key):
            read = json.loads(store.get(key))
            if match[2] == "workers":
                starts.setdefault(int(match[1]), []).append(WorkersStart(**read))
            else:
                about.setdefault(int(match[1]), {}).update(read)
    return [Attempt(number, **about[number], starts=tuple(starts.get(number, ()))) for number in sorted(about)]


def steps_done_again(attempts: Sequence[Attempt]) -> list[tuple[int, int]]:
    """(first, last) of the steps that were done a second time, at each start of workers that made this necessary.

    At least: what was done after the last step that was heard of is not known.
    """
    found, before = [], 0
    for attempt in attempts:
        for start in attempt.starts:
            heard = max(before, start.heard)
            if heard > start.step:
                found.append((start.step + 1, heard))
            before = 0
        before = max(before, attempt.reached)
    return found


class AttemptLog:
    """Writes one attempt down. Use as a context manager around the driver's work.

    What cannot be written, because the store is away, is written with the next: it is no reason to end a training.
    """

    def __init__(self, store: ObjectStore, run_id: str, continued: int, workspace: Path, seconds: float = 5.0) -> None:
        """``continued``: the step after which it goes on; ``seconds`` that pass at least between two reached steps."""
        self._store, self._folder, self._seconds = store, _folder(run_id), seconds
        self._begun = {"continued": continued, "workspace": str(workspace)}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._starts, self._reached, self._told = 0, 0, -seconds
        self.number = 0

    def __enter__(self) -> "AttemptLog":
        begun = {"time": _now(), "user": user_name(), "host": socket.gethostname(), **self._begun}
        numbers = [int(match[1]) for key in self._store.list(self._folder) if (match := _OBJECT.fullmatch(key))]
        self.number = max(numbers, default=0) + 1
        while not self._store.create(f"{self._folder}{self.number:04d}-begun.json", _to_json(begun)):
            self.number += 1  # somebody else begins at this moment
        return self

    def started(self, step: int, workers: int, hosts: Sequence[str]) -> None:
        """Its workers took up the checkpoint of a step."""
        self._starts += 1
        about = {"step": step, "heard": self._reached, "workers": workers, "hosts": sorted(set(hosts))}
        self._write(f"workers-{self._starts:02d}", {"time": _now(), **about})

    def reached(self, step: int) -> None:
        """So many steps are done."""
        if step != self._reached:
            self._reached = step
            self._waiting["reached"] = {"reached": step, "heard_at": _now()}
        if self._waiting and time.monotonic() - self._told >= self._seconds:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._write("ended", {"ended": _now(), "how": FINISHED if error is None else _why(error)})

    def _write(self, name: str, about: dict[str, Any]) -> None:
        self._waiting[name] = about
        self._flush()

    def _flush(self) -> None:
        self._told = time.monotonic()
        try:
            for name in list(self._waiting):
                self._store.put(f"{self._folder}{self.number:04d}-{name}.json", _to_json(self._waiting[name]))
                del self._waiting[name]
        except Exception as error:
            said = f"train: the history could not be written ({type(error).__name__}: {error})"
            console.print(said, markup=False, style="yellow")


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/history/"


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by its user"
    said = " ".join(str(error).split())[:500]
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False).encode()
