"""What can happen to a running service, as things that begin and, where they last, end."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.ports import free_ports
from infra.service_processes import command_of, marked
from infra.service_processes import family as everything_of
from tests.faults.small_disk import SmallDisk
from tests.running_service import RunningService

ROOT = Path(__file__).parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_DEFAULT_REGION": "us-east-1"}


class Bucket:
    """moto's S3 server and the way to it, each in a process of its own: the way can be cut, what is stored stays."""

    def __init__(self) -> None:
        self._server_port, self._way_port = free_ports(2)
        server = ROOT / "tests" / "infra" / "s3_server.py"
        self._server = self._start([sys.executable, str(server), str(self._server_port)], self._server_port)
        self._way = self._open()

    @property
    def endpoint(self) -> str:
        """By the way that can be cut."""
        return f"http://127.0.0.1:{self._way_port}"

    @property
    def server(self) -> str:
        """The server itself, for those who judge."""
        return f"http://127.0.0.1:{self._server_port}"

    def refuse(self) -> None:
        """Whoever is connected is cut off, nobody else gets in."""
        self._way.kill()
        self._way.wait()

    def swallow(self) -> None:
        """Nobody is refused and nobody gets an answer: packets are lost."""
        self._way.send_signal(signal.SIGSTOP)

    def mend(self) -> None:
        """The way is there again, for new connections."""
        self.refuse()
        self._way = self._open()

    def stop(self) -> None:
        """End both."""
        for process in (self._way, self._server):
            process.kill()
            process.wait()

    def _open(self) -> "subprocess.Popen[bytes]":
        relay = Path(__file__).with_name("relay.py")
        return self._start([sys.executable, str(relay), str(self._way_port), str(self._server_port)], self._way_port)

    @staticmethod
    def _start(command: Sequence[str], port: int) -> "subprocess.Popen[bytes]":
        environment = os.environ | KEYS
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                return process
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[1]} did not come up.") from None
                time.sleep(0.1)


@dataclass(frozen=True)
class Fault:
    """`begin`: what was hit, or "" where nothing of it is there at the moment. `end`: None where it is over at once."""

    kind: str
    begin: Callable[[], str]
    end: Callable[[], None] | None = None


def faults(service: RunningService, bucket: Bucket, disk: SmallDisk | None, stream: random.Random) -> list[Fault]:
    """All that can be done here: without PostgreSQL it cannot be killed, without a disk of our own none runs full."""

    def part(name: str) -> Callable[[], str]:
        return lambda: name if _kill_family(service.parts().get(name, {}).get("pid")) else ""

    def another() -> str:
        name = stream.choice([name for name in ("metrics", "prometheus") if name in service.parts()])
        return part(name)()

    def said(words: str, act: Callable[[], None]) -> Callable[[], str]:
        def begin() -> str:
            act()
            return words

        return begin

    found = [
        Fault("a run's process killed", lambda: _kill_run(service)),
        Fault("worker killed", part("worker")),
        Fault("Ray killed", part("ray-head")),
        Fault("watcher killed", part("watcher")),
        Fault("another part killed", another),
        Fault("Prefect server killed", part("prefect-server")),
        Fault("store down", said("its connections refused", bucket.refuse), bucket.mend),
        Fault("network cut", said("no answer from the store", bucket.swallow), bucket.mend),
    ]
    if "postgresql" in service.parts():
        found.append(Fault("PostgreSQL killed", part("postgresql")))
    if disk is not None:
        found.append(Fault("disk full", said("the workspace's", disk.fill), disk.clear))
    return found


def run_processes(service: RunningService) -> list[psutil.Process]:
    """The processes of flow runs, whoever started them."""
    return [one for one in marked(service.home) if "prefect.engine" in command_of(one)]


def family(pid: int | None) -> list[psutil.Process]:
    """A part's process and all that it started; but for the flow runs, which outlive their worker."""
    if pid is None:
        return []
    try:
        all_of_it = everything_of(pid)
    except psutil.Error:
        return []
    runs = {one.pid for run in all_of_it if "prefect.engine" in command_of(run) for one in _with_children(run)}
    return [one for one in all_of_it if one.pid not in runs]


def _with_children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def _kill_family(pid: int | None) -> bool:
    found = family(pid)
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return bool(found)


def _kill_run(service: RunningService) -> str:
    found = run_processes(service)
    for one in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return "prefect.engine" if found else ""
