"""Processes that belong together: started in order, looked after, started again where they die, stopped whole.

`python -m infra.service HOME` is the supervisor; `start` and `stop` are what commands call. In HOME:

    plan.json     what is to run: commands, environments (readable by its owner alone: it holds passwords)
    state.json    what runs, since when, how often it was started again
    lock          held by the supervisor as long as it lives, however it ends
    logs/         one file for each process

Each process carries HOME in its environment, and hands it on to those that it starts: so they are all found again, also
where the supervisor was killed and knows nothing any more.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

import psutil

from infra.errors import UserError
from infra.ports import is_free
from infra.service_processes import command_of, end_marked, family, held_mb, marked, marked_environment

_POLL_SECONDS = 0.2
_STEADY_SECONDS = 60.0  # who lived so long is started again at once
_LONGEST_PAUSE_SECONDS = 60.0
_WEIGH_SECONDS = 30.0
_LOG_BYTES = 50_000_000  # a log that is larger at a start begins anew; the one before is kept


@dataclass(frozen=True)
class Part:
    """One process. ready: "tcp:PORT", "http:URL", "file:PATH" (written since the start), "says:WORDS" (in its log) or
    "exit" (it ends with 0).

    stop: the signal that ends it in peace. user: as whom it runs, "" = as the supervisor. most_mb: where it and all it
    started hold more memory than this, it is started anew as soon as no process of the service has `busy` among its
    command's words; 0 = however much.
    """

    name: str
    command: list[str]
    ready: str
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0
    stop: str = "SIGTERM"
    stop_seconds: float = 20.0
    start_seconds: float = 180.0
    user: str = ""
    says: str = ""
    most_mb: float = 0.0
    busy: str = ""


class NotStarted(UserError):
    """A part did not come up."""


def is_up(home: Path) -> bool:
    """Whether the supervisor lives."""
    try:
        with open(home / "lock", "r+", encoding="utf-8") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def read_state(home: Path) -> dict[str, Any]:
    """What the supervisor last wrote down; {} where there is nothing."""
    try:
        return dict(json.loads((home / "state.json").read_text("utf-8")))
    except (OSError, ValueError):
        return {}


def start(home: Path, parts: Sequence[Part], tell: Callable[[str], None] = lambda says: None) -> dict[str, Any]:
    """Start the supervisor and wait until all parts are ready; its state. Raises UserError; then nothing runs."""
    home.mkdir(parents=True, exist_ok=True)
    stop(home)  # what a killed supervisor left
    for part in parts:
        if part.port and not is_free(part.port):
            raise UserError(
                f"Port {part.port}, which {part.name} needs, is in use: stop who listens there, or set another one."
            )
    _write(home / "plan.json", [asdict(part) for part in parts], private=True)
    (home / "state.json").unlink(missing_ok=True)
    (home / "logs").mkdir(exist_ok=True)
    with _log(home, "supervisor") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "infra.service", str(home)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=marked_environment(home),
        )  # fmt: skip
    told = ""
    while True:
        state = read_state(home)
        if state.get("phase") == "ready":
            return state
        if state.get("phase") == "failed" or process.poll() is not None:
            stop(home)
            raise NotStarted(state.get("says") or f"The supervisor ended: see {home / 'logs' / 'supervisor.log'}.")
        if state.get("says") and state["says"] != told:
            told = state["says"]
            tell(told)
        time.sleep(_POLL_SECONDS)


def stop(home: Path, seconds: float = 120.0) -> int:
    """End the supervisor and all that carries its mark; how many processes that were."""
    before = marked(home)
    supervisor = read_state(home).get("pid")
    if is_up(home) and supervisor:
        try:
            os.kill(supervisor, signal.SIGTERM)
        except ProcessLookupError:
            pass
        deadline = time.monotonic() + seconds
        while is_up(home) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
    end_marked(home)
    return len(before)


def _log(home: Path, name: str) -> IO[bytes]:
    path = home / "logs" / f"{name}.log"
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        os.replace(path, path.with_suffix(".log.1"))
    return path.open("ab")


def _write(path: Path, value: Any, private: bool = False) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(value, file, indent=1)
    if not private:
        partial.chmod(0o644)
    os.replace(partial, path)


class _Child:
    """A part's process, as the supervisor sees it."""

    def __init__(self, home: Path, part: Part) -> None:
        self.home, self.part = home, part
        self.process: subprocess.Popen[bytes] | None = None
        self.since, self.restarts, self.due, self.ready = 0.0, 0, 0.0, False
        self.log_start = 0  # where the log of this start begins

    @property
    def _log_path(self) -> Path:
        return self.home / "logs" / f"{self.part.name}.log"

    def start(self) -> None:
        part = self.part
        with _log(self.home, part.name) as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                part.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=marked_environment(self.home) | part.environment, user=part.user or None, cwd=self.home,
            )  # fmt: skip
        self.since, self.ready = time.time(), False

    def look(self) -> bool:
        """Whether it is ready, asked until it is."""
        if not self.ready and self.part.ready.startswith("says:"):
            with self._log_path.open("rb") as log:
                log.seek(self.log_start)
                self.ready = self.part.ready.removeprefix("says:").encode() in log.read()
        elif not self.ready:
            self.ready = _is_ready(self.part.ready, self.since, self.process)
        return self.ready

    def ended(self) -> int | None:
        """Its exit code."""
        return None if self.process is None else self.process.poll()

    def end(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(getattr(signal, self.part.stop))
        try:
            self.process.wait(self.part.stop_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def held(self) -> float:
        """What it and all that it started hold, in MB; what several share is counted once."""
        if self.process is None or self.ended() is not None:
            return 0.0
        try:
            return held_mb(family(self.process.pid))
        except psutil.Error:
            return 0.0

    def last_words(self) -> str:
        """The log's last line."""
        text = self._log_path.read_text("utf-8", "replace")[-5000:]
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "it said nothing"

    def about(self) -> dict[str, Any]:
        running = self.process is not None and self.process.poll() is None
        once = self.part.ready == "exit"
        state = (
            "done" if once and self.ready else "ready" if running and self.ready else "starting" if running else "down"
        )
        pid = self.process.pid if self.process is not None and running else None
        return {"state": state, "pid": pid, "since": self.since, "restarts": self.restarts, "says": self.part.says}


def _is_ready(how: str, since: float, process: subprocess.Popen[bytes] | None) -> bool:
    kind, _, where = how.partition(":")
    if kind == "exit":
        return process is not None and process.poll() == 0
    if kind == "file":
        try:
            return os.path.getmtime(where) >= since
        except OSError:
            return False
    try:
        if kind == "tcp":
            socket.create_connection(("127.0.0.1", int(where)), timeout=1).close()
            return True
        with urlopen(where, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


class Supervisor:
    """Starts the parts one after the other and looks after them until it is told to stop."""

    def __init__(self, home: Path, parts: Sequence[Part]) -> None:
        self.home, self.children = home, [_Child(home, part) for part in parts]
        self.stopping = False
        self._noted = True
        self._weighed = time.monotonic()

    def run(self) -> int:
        """Until SIGTERM; the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        try:
            for child in self.children:
                if (failed := self._bring_up(child)) and not self.stopping:
                    self._note("failed", failed)
                    return 1
            self._note("ready")
            while not self.stopping:
                if any([self._look_after(child) for child in self.children]) or not self._noted:
                    self._note("ready")
                if time.monotonic() - self._weighed > _WEIGH_SECONDS:
                    self._weigh()
                time.sleep(_POLL_SECONDS)
            return 0
        finally:
            phase = read_state(self.home)
            for child in reversed(self.children):
                child.end()
            end_marked(self.home)
            if phase.get("phase") != "failed":
                self._note("down")

    def _bring_up(self, child: _Child) -> str:
        """Start it and wait; why it did not come."""
        part = child.part
        self._note("starting", f"starting {part.name}")
        try:
            child.start()
        except OSError as error:
            return f"{part.name} could not be started ({error})."
        log, deadline = self.home / "logs" / f"{part.name}.log", time.monotonic() + part.start_seconds
        while not self.stopping and not child.look():
            if child.ended() is not None and not (part.ready == "exit" and child.ended() == 0):
                return f"{part.name} ended with {child.ended()} ({child.last_words()}): see {log}."
            if time.monotonic() > deadline:
                return f"{part.name} was not ready within {part.start_seconds:.0f} s ({child.last_words()}): see {log}."
            time.sleep(_POLL_SECONDS)
        return ""

    def _look_after(self, child: _Child) -> bool:
        """Start it again where it died, later each time; whether anything changed."""
        if child.part.ready == "exit":
            return False
        if child.ended() is None:
            return not child.ready and child.look()
        if not child.due:
            lived = time.time() - child.since
            pause = 0.0 if lived > _STEADY_SECONDS else min(2.0 ** min(child.restarts, 10), _LONGEST_PAUSE_SECONDS)
            child.due = time.monotonic() + pause
            _say(f"{child.part.name} ended with {child.ended()} ({child.last_words()}); again in {pause:.0f} s")
            return True
        if time.monotonic() >= child.due:
            child.restarts += 1
            try:
                child.start()
            except OSError as error:  # its log cannot be made on a full disk
                _say(f"{child.part.name} could not be started ({error}); again in {_LONGEST_PAUSE_SECONDS:.0f} s")
                child.due = time.monotonic() + _LONGEST_PAUSE_SECONDS
                return True
            child.due = 0.0
            return True
        return False

    def _weigh(self) -> None:
        """End a part that grew beyond its measure while nobody needs it; it is started again as one that died."""
        for child in self.children:
            part = child.part
            if not part.most_mb or not child.ready or (held := child.held()) <= part.most_mb:
                continue
            if not any(part.busy in words for words in map(command_of, marked(self.home))):
                _say(f"{part.name} holds {held:.0f} MB, more than {part.most_mb:.0f}, and nothing is at work: it ends")
                child.end()
        self._weighed = time.monotonic()

    def _note(self, phase: str, says: str = "") -> None:
        parts = {child.part.name: child.about() for child in self.children}
        try:
            _write(self.home / "state.json", {"phase": phase, "says": says, "pid": os.getpid(), "parts": parts})
        except OSError as error:  # a full disk ends nobody that runs; written down late is better than not at all
            if self._noted:
                _say(f"what runs could not be written down ({error}); it is tried again")
            self._noted = False
        else:
            self._noted = True

    def _stop(self, *_: object) -> None:
        self.stopping = True


def _say(line: str) -> None:
    with suppress(OSError):  # a log on a full disk
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """The supervisor's own process."""
    home = Path(arguments[0])
    with open(home / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another supervisor is at work")
            return 1
        plan: list[Mapping[str, Any]] = json.loads((home / "plan.json").read_text("utf-8"))
        return Supervisor(home, [Part(**part) for part in plan]).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
