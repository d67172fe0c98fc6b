"""What a job on a cluster shows, brought through the store to the page of the run that waits for it.

The job keeps it on a `StoreBoard`, as it is at the moment; whoever waits shows that with a `Mirror`, from the beginning
also where it came late. Tables, texts and pictures that a stage leaves behind travel with the job's outcome.
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from flows import artifacts
from infra.storage import ObjectStore

_WRITE_SECONDS = 3.0  # between two looks at what has changed
_ALIVE_SECONDS = 60.0  # it is written again though nothing has: so it is known that the job lives


class StoreBoard:
    """The job's side. Use as a context manager: meanwhile a thread writes what has changed to `key`."""

    def __init__(self, store: ObjectStore, key: str) -> None:
        self._store, self._key = store, key
        self.left: list[dict[str, Any]] = []  # [{"kind", "content"}]: the artifacts, for the outcome
        self._parts = list[dict[str, Any]]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self._writing = threading.Lock()  # what was taken down later is written later, too
        self._written, self._told = "", float("-inf")
        self._thread = threading.Thread(target=self._keep_writing, name="job page", daemon=True)

    def __enter__(self) -> "StoreBoard":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._write()

    def open_bar(self, title: str, total: float) -> dict[str, Any]:
        return self._open({"bar": title, "total": total, "done": 0.0, "says": title, "open": True})

    def open_table(self, key: str, description: str) -> dict[str, Any]:
        return self._open({"table": key, "description": description, "rows": [], "open": True})

    def close(self, part: dict[str, Any]) -> None:
        part["open"] = False  # it stays, as it was at last: a job has a handful

    def put(self, kind: str, content: dict[str, Any]) -> None:
        self.left.append({"kind": kind, "content": content})

    def _open(self, part: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            self._parts.append(part)
        return part

    def _keep_writing(self) -> None:
        while True:
            self._write()
            if self._over.wait(_WRITE_SECONDS):
                return

    def _write(self) -> None:
        with self._writing:
            self._write_alone()

    def _write_alone(self) -> None:
        with self._lock:
            parts = json.dumps(self._parts, default=str)
        if parts == self._written and time.monotonic() - self._told < _ALIVE_SECONDS:
            return
        try:
            self._store.put(self._key, json.dumps({"time": time.time(), "parts": json.loads(parts)}).encode())
        except Exception as error:  # whatever keeps a store from being written: it is for the eye, and tried again
            artifacts.console.print(f"the page could not be told ({type(error).__name__}: {error})", markup=False)
            return
        self._written, self._told = parts, time.monotonic()


class Mirror:
    """The waiting side: bars and tables that are as the job's. Use as a context manager."""

    def __init__(self) -> None:
        self._shown = dict[int, artifacts.Track | artifacts.LiveTable]()
        self._ended = set[int]()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._shown):
            self._end(number)

    def show(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """`parts` as the job's board has them now."""
        for number, part in enumerate(parts):
            if number in self._ended:
                continue
            if number not in self._shown:
                self._shown[number] = _opened(part)
            shown = self._shown[number]
            if isinstance(shown, artifacts.Track):
                shown.to(part["done"], part["says"])
            elif part["rows"]:
                shown.show(part["rows"])
            if not part["open"]:
                self._end(number)

    def _end(self, number: int) -> None:
        self._shown.pop(number).__exit__(None, None, None)
        self._ended.add(number)


def _opened(part: Mapping[str, Any]) -> artifacts.Track | artifacts.LiveTable:
    if "bar" in part:
        return artifacts.Track(part["bar"], part["total"]).__enter__()
    return artifacts.LiveTable(part["table"], part["description"]).__enter__()


def show_left(left: Sequence[Mapping[str, Any]]) -> None:
    """The artifacts that a job left, on the page of the run that waited for it."""
    for one in left:
        artifacts.put(one["kind"], one["content"])
