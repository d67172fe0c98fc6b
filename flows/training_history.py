"""Who ran a training, where, from which step and how far: small objects beside it, so that no kill loses what was.

    runs/RUN/history/0001-begun.json       a driver began: who, where, when, after which step; created, never replaced
    runs/RUN/history/0001-workers-01.json  its workers started, and each time that they started again
    runs/RUN/history/0001-reached.json     the last step that it heard of; replaced every few seconds, a sign of life
    runs/RUN/history/0001-ended.json       how it ended, where it could still say so

Every attempt has a number of its own, whoever begins it. The driver writes all of it. (No torch here.)
"""

import json
import re
import socket
import threading
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
_SIGNS = 3  # of life, one of which an attempt that goes on does give
_CLOCKS_SECONDS = 600.0  # so far apart two machines' clocks may be
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
    """When its driver last gave a sign of life."""
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
    UserError where another attempt goes on: what one of two drivers writes, the other one would clear away.
    """

    def __init__(self, store: ObjectStore, run_id: str, continued: int, workspace: Path, seconds: float = 5.0) -> None:
        """``continued``: the step after which it goes on; ``seconds`` between two signs of life (0: none is given or
        waited for)."""
        self._store, self._run_id, self._folder, self._seconds = store, run_id, _folder(run_id), seconds
        self._begun = {"continued": continued, "workspace": str(workspace)}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._starts, self._reached, self._told = 0, 0, -seconds
        self._writing, self._over, self._away = threading.RLock(), threading.Event(), False
        self.number = 0

    def __enter__(self) -> "AttemptLog":
        begun = {"time": _now(), "user": user_name(), "host": socket.gethostname(), **self._begun}
        numbers = [int(match[1]) for key in self._store.list(self._folder) if (match := _OBJECT.fullmatch(key))]
        self.number = max(numbers, default=0) + 1
        while not self._store.create(f"{self._folder}{self.number:04d}-begun.json", _to_json(begun)):
            self.number += 1  # somebody else begins at this moment
        if self._seconds:  # from here on, so that of two that begin at this moment the second hears the first
            threading.Thread(target=self._live, name="history", daemon=True).start()
        try:
            self._refuse_a_second()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _refuse_a_second(self) -> None:
        """Of a driver that was killed just now nothing more is heard, of one that lives something soon."""
        heard, listening = {one.number: one.heard_at for one in self._unended()}, _SIGNS * self._seconds
        if heard and listening:
            said = f"attempt {max(heard)} at this training did not say that it ended: listening for {listening:g} s"
            console.print(f"train: {said}", markup=False)
        ends = time.monotonic() + listening
        while heard and time.monotonic() < ends:
            time.sleep(min(1.0, self._seconds))
            for one in self._unended():
                if one.heard_at != heard.get(one.number, one.heard_at):
                    raise UserError(
                        f"{one.user} on {one.host} is at this training since {one.time} (attempt {one.number}, step "
                        f"{one.reached:,}): wait for its end, or stop it there; the same command then goes on."
                    )

    def _unended(self) -> list[Attempt]:
        """Those that began before this one, and of which something was heard not long ago."""
        attempts = [one for one in read_attempts(self._store, self._run_id) if one.number < self.number]
        return [one for one in attempts if not one.ended and _seconds_since(one.heard_at or one.time) < _CLOCKS_SECONDS]

    def _live(self) -> None:
        while True:
            with self._writing:
                if self._over.is_set():
                    return
                self._write("reached", {"reached": self._reached, "heard_at": _now()})
            self._over.wait(self._seconds)

    def started(self, step: int, workers: int, hosts: Sequence[str]) -> None:
        """Its workers took up the checkpoint of a step."""
        self._starts += 1
        about = {"step": step, "heard": self._reached, "workers": workers, "hosts": sorted(set(hosts))}
        self._write(f"workers-{self._starts:02d}", {"time": _now(), **about})

    def reached(self, step: int) -> None:
        """So many steps are done."""
        if step != self._reached:
            with self._writing:
                self._reached = step
                self._waiting["reached"] = {"reached": step, "heard_at": _now()}
        if self._waiting and time.monotonic() - self._told >= self._seconds:
            self._flush()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._write("ended", {"ended": _now(), "how": FINISHED if error is None else _why(error)})

    def _write(self, name: str, about: dict[str, Any]) -> None:
        with self._writing:
            self._waiting[name] = about
            self._flush()

    def _flush(self) -> None:
        self._told = time.monotonic()
        try:
            with self._writing:
                for name in list(self._waiting):
                    self._store.put(f"{self._folder}{self.number:04d}-{name}.json", _to_json(self._waiting[name]))
                    del self._waiting[name]
                self._away = False
        except Exception as error:
            if not self._away:  # said once, not every few seconds
                said = f"train: the history could not be written ({type(error).__name__}: {error})"
                console.print(said, markup=False, style="yellow")
            self._away = True


def _folder(run_id: str) -> str:
    return f"runs/{run_id}/history/"


def _why(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by its user"
    said = " ".join(str(error).split())[:500]
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def _seconds_since(moment: str) -> float:
    return abs((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _to_json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False).encode()
