"""A real S3 server for tests: Ceph's RADOS gateway with one monitor and one store in memory, all on 127.0.0.1.

    python -m infra.ceph run COMMAND…     start it, run the command with the server's address and keys, stop it
    python -m infra.ceph start FOLDER     start it and leave it running; prints what to `export`
    python -m infra.ceph stop FOLDER      stop it

Debian's packages, none of their services: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw. Nothing is
kept: what was stored is gone with the process, and it takes `_STORE_BYTES` of memory at most. Its address is in
MOA_TEST_S3_ENDPOINT, its keys are in the usual AWS variables.
"""

import json
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from contextlib import suppress
from pathlib import Path

from infra.errors import UserError
from infra.ports import free_ports, is_free

ENDPOINT = "MOA_TEST_S3_ENDPOINT"
_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_STORE_BYTES = 2 * 2**30
_OTHER_BYTES = 2 * 2**30  # what the store's process may take beside what it stores
_SECONDS = 90.0
_ERROR = re.compile(r"^\d\S+ [0-9a-f]+ -1 (.*\S)", re.MULTILINE)  # time, thread, level
_CONFIGURATION = """[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}]
ms bind msgr1 = false
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
# Without these the gateway waits for ever.
ms mon client mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
mon data = {folder}/mon
osd data = {folder}/osd
log file = {folder}/$name.log
pid file = {folder}/$name.pid
admin socket = {folder}/$name.$pid.asok
run dir = {folder}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
osd objectstore = memstore
memstore device bytes = {store}
# Two logs of writes that nobody will replay would soon be the largest part of the memory.
osd min pg log entries = 50
osd max pg log entries = 100
# What was deleted gives its memory back at once, not after two hours.
rgw gc obj min wait = 1
rgw gc processor period = 5
rgw gc processor max time = 5
debug rgw = 0
debug osd = 0
debug ms = 0
[client.rgw]
# Without nodelay a small GET takes 45 ms.
rgw frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
"""


class CephServer:
    """One in a folder, which it makes; as a context manager it is stopped and the folder removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / "server.json"

    def start(self) -> dict[str, str]:
        """Start everything; the environment in which clients find it. Raises UserError where that is not possible."""
        if gone := missing():
            raise UserError(gone)
        self.folder.mkdir(parents=True)
        ports = free_ports(2)
        state = {
            "environment": {
                ENDPOINT: f"http://127.0.0.1:{ports[1]}",
                "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
                "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_REGION": "us-east-1",
            },
            "pids": {},
        }
        settings = {"fsid": uuid.uuid4(), "monitor": ports[0], "gateway": ports[1], "store": _STORE_BYTES}
        (self.folder / "ceph.conf").write_text(_CONFIGURATION.format(**settings, folder=self.folder))
        self._write(state)
        try:
            self._start_store(settings)
            keys = [f"--access-key={state['environment']['AWS_ACCESS_KEY_ID']}"]
            keys += [f"--secret-key={state['environment']['AWS_SECRET_ACCESS_KEY']}"]
            self._run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
            self.start_gateway()
        except BaseException:
            self.stop()
            raise
        return dict(state["environment"])

    def _start_store(self, settings: dict[str, object]) -> None:
        monitor = f"[v2:127.0.0.1:{settings['monitor']}]"
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", str(settings["fsid"]), "--addv", "a", monitor, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._spawn("monitor", "ceph-mon", "-f", "-i", "a")
        name = str(uuid.uuid4())
        self._run("ceph", "osd", "new", name)
        (self.folder / "osd").mkdir()
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", name)
        # Beyond that it ends, where without a bound it would take the machine's memory.
        self._spawn("store", "ceph-osd", "-f", "-i", "0", most=_STORE_BYTES + _OTHER_BYTES)

    def start_gateway(self) -> None:
        """The part that speaks HTTP, also after `kill_gateway`: what is stored is still there."""
        address, deadline = self._read()["environment"][ENDPOINT], time.monotonic() + _SECONDS
        port = int(address.rpartition(":")[2])
        if not is_free(port):  # a gateway that finds it taken often crashes while it ends, and may not have said why
            raise UserError(f"Ceph's gateway did not start: port {port} of 127.0.0.1 is in use.")
        process = self._spawn("gateway", "radosgw", "-f", "-n", "client.rgw")
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                return
            except urllib.error.HTTPError:  # it answers
                return
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise UserError(f"Ceph's gateway did not start: {self._reason('gateway', process)}.") from None
                time.sleep(0.05)

    def kill_gateway(self) -> None:
        """End the part that speaks HTTP in the middle of what it does."""
        self._kill("gateway", signal.SIGKILL)

    def stop(self) -> None:
        """End everything and remove the folder; nothing where it does not run."""
        for name in ("gateway", "store", "monitor"):
            self._kill(name, signal.SIGKILL)  # nothing of it is kept
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> dict[str, str]:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _reason(self, name: str, process: subprocess.Popen[bytes]) -> str:
        """Why a program does not serve: its folder does not outlive it."""
        said = (self.folder / f"{name}.out").read_text(errors="replace")
        # Its own errors come first: what ends after one may crash as well, and then speaks of nothing else.
        reason = "; ".join(_ERROR.findall(said))[:300] or " ".join(said.split())[-300:]
        return reason or f"it said nothing (exit status {process.poll()})"

    def _run(self, program: str, *arguments: str) -> None:
        command = [program, "-c", str(self.folder / "ceph.conf"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
        if done.returncode:
            raise UserError(f"Ceph's {program} failed: {' '.join(done.stderr.split())[-300:]}.")

    def _spawn(self, name: str, program: str, *arguments: str, most: int = 0) -> subprocess.Popen[bytes]:
        def bounded() -> None:
            if most:
                resource.setrlimit(resource.RLIMIT_DATA, (most, most))

        with (self.folder / f"{name}.out").open("wb") as out:
            process = subprocess.Popen(
                [program, "-c", str(self.folder / "ceph.conf"), *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, preexec_fn=bounded,
            )  # fmt: skip
        state = self._read()
        state["pids"][name] = [process.pid, _started(process.pid)]
        self._write(state)
        return process

    def _kill(self, name: str, how: signal.Signals) -> None:
        with suppress(FileNotFoundError, ValueError, KeyError):
            pid, started = self._read()["pids"][name]
            if started != _started(pid):  # another process has its number by now
                return
            with suppress(ProcessLookupError):
                os.kill(pid, how)
            deadline = time.monotonic() + _SECONDS
            while started == _started(pid) and time.monotonic() < deadline:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
                time.sleep(0.02)

    def _read(self) -> dict[str, dict]:  # type: ignore[type-arg]
        return json.loads(self._state.read_text())

    def _write(self, state: object) -> None:
        self._state.write_text(json.dumps(state))


def missing() -> str:
    """What keeps it from being started, in a sentence; "" for nothing."""
    gone = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"Ceph is not here ({', '.join(gone)}): apt-get install ceph-mon ceph-osd radosgw." if gone else ""


def _started(pid: int) -> str:
    """When the process was started, as Linux counts it; "" for one that is gone or only waits to be buried."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def main(arguments: list[str]) -> int:
    """What the module's own docstring says."""
    match arguments:
        case ["run", *command] if command:
            if gone := missing():
                print(f"{gone} Nothing was run.")
                return 0
            # Short, for the paths of sockets have a limit.
            with CephServer(Path(tempfile.mkdtemp(prefix="moa-ceph-")) / "c") as environment:
                return subprocess.run(command, env=os.environ | environment).returncode
        case ["start", folder]:
            for name, value in CephServer(Path(folder).absolute()).start().items():
                print(f"export {name}={value}")
            return 0
        case ["stop", folder]:
            CephServer(Path(folder).absolute()).stop()
            return 0
    print(__doc__)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
