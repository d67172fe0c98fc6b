"""A Ray cluster's head with its dashboard, in processes of their own: what jobs are submitted to."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from infra.ports import free_ports

ROOT = Path(__file__).parents[1]


class RayHead:
    """One machine's cluster, which asks for a token as Ray does by default. Use as a context manager."""

    def __init__(self, log: Path, environment: Mapping[str, str] | None = None) -> None:
        names = ("gcs", "dashboard", "agent", "agent_grpc", "client")
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.token = secrets.token_hex(32)
        self.log, self._more = log, dict(environment or {})

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    @property
    def access(self) -> dict[str, str]:
        """What a driver's environment needs."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @contextmanager
    def letting_in(self) -> Iterator[None]:
        """This process may use the cluster within the block; Ray reads a token once and keeps it."""
        from ray._private.authentication_test_utils import reset_auth_token_state

        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.access.items():
                patch.setenv(name, value)
            reset_auth_token_state()
            try:
                yield
            finally:
                patch.undo()
                reset_auth_token_state()

    def __enter__(self) -> "RayHead":
        # Short: Ray's sockets have paths of at most 107 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        ray = Path(sys.executable).with_name("ray")
        command = [
            sys.executable, str(ray), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=3",
            "--node-ip-address=127.0.0.1", "--object-store-memory=80000000", f"--temp-dir={self._folder.name}",
            f"--port={self.ports['gcs']}", f"--dashboard-port={self.ports['dashboard']}", "--include-dashboard=true",
            f"--dashboard-agent-listen-port={self.ports['agent']}",
            f"--dashboard-agent-grpc-port={self.ports['agent_grpc']}",
            f"--ray-client-server-port={self.ports['client']}",
        ]  # fmt: skip
        environment = os.environ | self.access | self._more
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        # The project is installed beside this Python: a job's "python" must be this one.
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=self._folder.name)
        deadline = time.monotonic() + 120
        while not _answers(self.ports["dashboard"]):
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-2000:]
            time.sleep(0.1)

    def processes(self, words: Sequence[str]) -> list[psutil.Process]:
        """The cluster's processes in whose command line all these words stand."""
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if all(word in line for word in words):
                found.append(process)
        return found

    @contextmanager
    def holding(self, words: Sequence[str]) -> Iterator[None]:
        """These processes stand still within the block, so that a job is not over before it was looked at."""
        held = self.processes(words)
        assert held, f"no process of {words} is there"
        for process in held:
            process.suspend()
        try:
            yield
        finally:
            for process in held:
                process.resume()

    def kill(self) -> None:
        """The head and all that it started, at once."""
        family = [self._process_of_head(), *self.processes([])] if self._process.poll() is None else []
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(family, timeout=10)
        self._process.wait()

    def _process_of_head(self) -> psutil.Process:
        return psutil.Process(self._process.pid)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False
