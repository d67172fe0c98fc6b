"""The way to a server on this machine, which can be taken away for a while."""

import contextlib
import random
import socket
import subprocess
import sys
import time
from pathlib import Path


class Relay:
    """Use as a context manager; `address` is the way's own."""

    def __init__(self, server_port: int) -> None:
        self._server_port, self._port = server_port, _lasting_port()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "Relay":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def away(self, seconds: float) -> None:
        """Cut all connections, and let none through for so long."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def start(self) -> None:
        """Let connections through."""
        script = Path(__file__).with_name("relay.py")
        self._process = subprocess.Popen([sys.executable, str(script), str(self._port), str(self._server_port)])
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None, "the way to the server ended at its start"
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        """Cut all connections."""
        self._process.kill()
        self._process.wait()


def _lasting_port() -> int:
    """One that is free, and below those that Linux and Ray give to whoever asks for any: it stays free."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.closing(socket.socket()) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
