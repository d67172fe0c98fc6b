"""Work on a thread of its own for which nobody waits when the command ends."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

_LOOK_SECONDS = 1.0


def in_background(work: Callable[[], Any]) -> Future[Any]:
    """Like an executor's `submit`, on a thread for which nobody waits at the end: what is given up is left behind."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, name="background", daemon=True).start()
    return future


def wait_for(futures: Sequence[Future[Any]]) -> None:
    """Until all have ended, in pieces: Ctrl-C does not break off a wait without an end once polars was imported, whose
    own handler of that signal has the system call begun again."""
    while wait(futures, timeout=_LOOK_SECONDS).not_done:
        pass
