"""A worker that hangs is ended: a step that waits for a lost peer or a dead device would wait for ever."""

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

_EXIT_CODE = 70  # EX_SOFTWARE: what Ray Train takes for a lost worker


class Watchdog:
    """While it is entered: whoever does not call `alive` for so many seconds is ended, with every thread's stack in the
    worker's log."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last, self._over = seconds, time.monotonic(), threading.Event()

    def alive(self) -> None:
        """A step is done."""
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.alive()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                sys.stderr.write(f"No step for {self.seconds:.0f} seconds (train.hang_seconds): this worker ends.\n")
                faulthandler.dump_traceback(all_threads=True)
                os._exit(_EXIT_CODE)
