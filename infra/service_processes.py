"""The processes of a service: found by the mark that they hand on to those that they start, weighed, and ended."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

_LOOKS, _LOOK_SECONDS = 3, 0.1
MARK = "MOA_SERVICE"
"""The environment variable that has the service's folder."""


def marked_environment(home: Path) -> dict[str, str]:
    """This process's, for one that belongs to HOME."""
    return {**os.environ, MARK: str(home)}


def marked(home: Path) -> list[psutil.Process]:
    """The processes that belong to HOME, but for this one and those that it descends from."""
    own = psutil.Process()
    left_out = {own.pid, *(parent.pid for parent in own.parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in left_out and process.environ().get(MARK) == str(home):
                found.append(process)
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return found


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started. Raises psutil.NoSuchProcess."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def held_mb(processes: Sequence[psutil.Process]) -> float:
    """MB that these would give back: what several share is counted once."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6


def command_of(process: psutil.Process) -> list[str]:
    """Its words; [] where it is gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def end_all(processes: Sequence[psutil.Process], seconds: float = 10.0) -> None:
    """Asked first, killed after so many seconds."""
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            try:
                # PostgreSQL would wait for its clients at a SIGTERM, and must not be killed if it can be helped.
                gentle = signal_number == signal.SIGTERM and process.name() == "postgres"
                process.send_signal(signal.SIGINT if gentle else signal_number)
            except psutil.Error:
                continue
        _, processes = psutil.wait_procs(processes, timeout=seconds)
        if not processes:
            return


def end_marked(home: Path) -> None:
    """End what belongs to HOME. Looked for again and again: what was started this moment shows no environment yet, and
    what is asked to end may start something."""
    for _ in range(_LOOKS):
        end_all(marked(home))
        time.sleep(_LOOK_SECONDS)
