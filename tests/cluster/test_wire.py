"""The network between hosts: it carries, it is as slow and lossy as it was told, it is cut and mended, and it goes."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster.wire import Wire, why_no_wire

WHY_NOT = why_no_wire()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.xdist_group("wire")]

ROOT = Path(__file__).parents[2]
PORT = 7000


@pytest.fixture(scope="module")
def one_wire() -> Iterator[Wire]:
    with Wire(["ada", "bob"]) as wire:
        yield wire


@pytest.fixture
def wire(one_wire: Wire) -> Iterator[Wire]:
    yield one_wire
    one_wire.quality()
    one_wire.mend("ada")


@pytest.fixture
def ends(wire: Wire) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection from Bob to Ada."""
    with wire.socket_on("ada") as listener, wire.socket_on("bob") as bob:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((wire.address("ada"), PORT))
        listener.listen()
        bob.settimeout(60)
        bob.connect((wire.address("ada"), PORT))
        ada, where = listener.accept()
        ada.settimeout(60)
        assert where[0] == wire.address("bob")
        with ada:
            yield ada, bob


def test_what_is_sent_arrives_whole(wire: Wire, ends: tuple[socket.socket, socket.socket]) -> None:
    sent = os.urandom(1_000_000)
    assert _through(*ends, sent) == sent
    assert wire.count()["carried"] > len(sent) // 9000


def test_tcp_gets_through_a_slow_and_lossy_wire(wire: Wire, ends: tuple[socket.socket, socket.socket]) -> None:
    before = wire.count()["lost"]
    wire.quality(delay_ms=2, jitter_ms=1, loss=0.05)
    sent = os.urandom(1_000_000)
    assert _through(*ends, sent) == sent
    assert wire.count()["lost"] > before


def test_some_datagrams_are_lost_and_some_are_not(wire: Wire) -> None:
    wire.quality(loss=0.3)
    with wire.socket_on("ada", socket.SOCK_DGRAM) as ada, wire.socket_on("bob", socket.SOCK_DGRAM) as bob:
        ada.bind((wire.address("ada"), PORT))
        came = list[int]()
        for number in range(10_000):
            bob.sendto(b"%d" % number, (wire.address("ada"), PORT))
            while select.select([ada], [], [], 0.001)[0]:
                came.append(int(ada.recv(100)))
            if came and came[-1] >= len(came):
                break  # there is a gap
    assert 0 < len(came) <= came[-1]


def test_an_answer_takes_the_way_twice(wire: Wire, ends: tuple[socket.socket, socket.socket]) -> None:
    ada, bob = ends
    wire.quality(delay_ms=40, jitter_ms=10)
    began = time.monotonic()
    bob.sendall(b"?")
    assert ada.recv(1) == b"?"
    ada.sendall(b"!")
    assert bob.recv(1) == b"!"
    assert time.monotonic() - began >= 2 * 0.030


def test_a_cut_stops_all_and_the_connection_goes_on_when_it_is_mended(
    wire: Wire, ends: tuple[socket.socket, socket.socket]
) -> None:
    ada, bob = ends
    wire.cut("ada")
    before = wire.count()["cut"]
    bob.sendall(b"are you there?")
    _until(lambda: wire.count()["cut"] > before)
    with wire.socket_on("bob") as another:
        another.settimeout(0.3)
        with pytest.raises(TimeoutError):
            another.connect((wire.address("ada"), PORT))
    assert select.select([ada], [], [], 0)[0] == []
    wire.mend("ada")
    assert ada.recv(100) == b"are you there?"


def test_nothing_leads_out(wire: Wire) -> None:
    with socket.socket() as listener, wire.socket_on("bob") as bob:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with pytest.raises(ConnectionRefusedError):
            bob.connect(listener.getsockname())
        with pytest.raises(OSError):
            bob.connect(("192.0.2.1", 80))


def test_hosts_and_what_runs_there_end_with_whoever_held_them() -> None:
    """However it died."""
    code = (
        "from tests.cluster.wire import Wire; import subprocess, time\n"
        "with Wire(['eve']) as wire:\n"
        "    eve = subprocess.Popen(['ip', 'netns', 'exec', wire.namespace('eve'), 'sleep', '600'])\n"
        "    while subprocess.check_output(['ip', 'netns', 'pids', wire.namespace('eve')]) == b'': pass\n"
        "    print(wire.namespace('eve'), eve.pid, flush=True)\n"
        "    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        namespace, pid = holder.stdout.readline().split()
        assert namespace in _namespaces()
        holder.send_signal(signal.SIGKILL)
    _until(lambda: namespace not in _namespaces())
    _until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def _through(ada: socket.socket, bob: socket.socket, sent: bytes) -> bytes:
    """What comes to Ada when Bob sends this."""
    sender = threading.Thread(target=bob.sendall, args=(sent,))
    sender.start()
    came = bytearray()
    while len(came) < len(sent):
        assert (data := ada.recv(1 << 20)), "the connection broke"
        came += data
    sender.join()
    return bytes(came)


def _namespaces() -> list[str]:
    return [line.split()[0] for line in subprocess.check_output(["ip", "netns", "list"], text=True).splitlines()]


def _until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)
