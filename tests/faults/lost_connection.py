"""The way to a server on this machine, which can be taken away for a while."""

import socket
import subprocess
import sys
import time
from pathlib import Path


class Relay:
    """Use as a context manager; `port` is the way's own."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])

    def __enter__(self) -> "Relay":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def away(self, seconds: float) -> None:
        """Cut all connections, and let none through for so long."""
        self._end()
        time.sleep(seconds)
        self._start()

    def _start(self) -> None:
        script = Path(__file__).with_name("relay.py")
        self._process = subprocess.Popen([sys.executable, str(script), str(self.port), str(self._server_port)])
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
