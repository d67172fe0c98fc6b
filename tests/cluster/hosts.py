"""Hosts on a wire: each with a name, an address, processes and a disk of its own, which can be killed and started anew.

    BASE/own        the host's own disk, whoever looks: its TMPDIR. It survives a kill, as a disk does
    BASE/disks/…    where those of all lie; empty, seen from a host
    BASE/logs/…     what each host printed, for the test

The rest of the file system is the same everywhere, as programs and photos on a share would be. A host runs one command;
with it, or killed, all that it started ends at once: it is a PID namespace, too, whose first process dies.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.wire import Wire

# $1 name, $2 the table of names, $3 the disk, $4 where it is seen, $5 the disks of all; then the command. The shell
# stays: a PID namespace's first process is the one that takes leave of orphans.
_BOOT = """
set -e
hostname "$1"
mount --bind "$2" /etc/hosts
mount --bind "$3" "$4"
mount -t tmpfs tmpfs "$5"
mount -t tmpfs -o size=1g tmpfs /dev/shm
cd "$4"
shift 5
set +e
"$@"
exit $?
"""


class Hosts:
    """The hosts of a wire. As a context manager within the wire's: at the end nothing of them runs or lies on disk."""

    def __init__(self, wire: Wire, environment: Mapping[str, str]) -> None:
        self.wire, self._environment = wire, dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}

    def __enter__(self) -> "Hosts":
        self.base = Path(tempfile.mkdtemp(prefix="moa-", dir="/tmp"))  # short: Ray's sockets lie in it
        self.own = self.base / "own"
        for folder in (self.own, self.base / "logs", *(self.base / "disks" / host for host in self.wire.hosts)):
            folder.mkdir(parents=True)
        names = [f"{self.wire.address(host)} {host}" for host in self.wire.hosts]
        (self.base / "names").write_text("\n".join(["127.0.0.1 localhost", *names]) + "\n")
        return self

    def __exit__(self, *_: object) -> None:
        for host in list(self._running):
            self.kill(host)
        shutil.rmtree(self.base, ignore_errors=True)

    def start(self, host: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run the command on the host, on which nothing runs."""
        assert self.ended(host) is not None, f"{host} is running"
        self._commands[host] = (command, dict(environment or {}))
        disk = self.base / "disks" / host
        words = ["ip", "netns", "exec", self.wire.namespace(host)]
        words += ["unshare", "--mount", "--uts", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child", "--"]
        words += ["sh", "-c", _BOOT, "sh", host, str(self.base / "names"), str(disk), str(self.own)]
        words += [str(self.base / "disks"), *command]
        own = {"TMPDIR": str(self.own), "RAY_TMPDIR": str(self.own), "HOME": str(self.own)}
        with self.log(host).open("ab") as log:
            self._running[host] = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=os.environ | self._environment | own | dict(environment or {}),
            )  # fmt: skip

    def start_again(self, host: str) -> None:
        """With the command and on the disk of before."""
        command, environment = self._commands[host]
        self.start(host, command, environment)

    def kill(self, host: str) -> None:
        """SIGKILL to all that runs there, at once."""
        process = self._running.pop(host)
        process.kill()
        process.wait()
        while self.pids(host):  # the kernel kills them; some it takes a moment
            time.sleep(0.02)

    def ended(self, host: str) -> int | None:
        """The command's exit code, or 0 where none was started; None while it runs."""
        process = self._running.get(host)
        return 0 if process is None else process.poll()

    def pids(self, host: str) -> list[int]:
        """Of the host's processes, as this machine counts them."""
        words = ["ip", "netns", "pids", self.wire.namespace(host)]
        return [int(pid) for pid in subprocess.check_output(words, text=True).split()]

    def log(self, host: str) -> Path:
        return self.base / "logs" / f"{host}.log"

    def said(self, host: str) -> str:
        """All that the host's commands have printed so far."""
        return self.log(host).read_text(errors="replace") if self.log(host).exists() else ""
