"""A network between hosts on this machine, slow and lossy on request: `python -m tests.cluster.wire PREFIX HOST…`.

Each host is a network namespace whose only card is a TUN device. One process holds the other ends: it reads every IP
packet and hands it to the host of its address, later or never, as it was told. `tc netem` does the same in the kernel
where the kernel has that module; this needs none, only root and /dev/net/tun. As with netem, a delay that varies lets
packets overtake one another.

Orders come as lines of JSON on its standard input and are answered on its output. Where that input ends, however
whoever held it died, all processes of the namespaces are killed and the namespaces removed.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import random
import secrets
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_NETWORK = "10.77.0."
_MTU = 9000  # bytes, a jumbo frame: a packet costs Python the same, however long it is
_MOST = 64  # packets that are read from one host before the others have their turn
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_CLONE_NEWNET = 0x40000000  # linux/sched.h


def why_no_wire() -> str:
    """What keeps this machine from having one; "" where nothing does."""
    if os.geteuid() != 0:
        return "network namespaces and TUN devices are for root alone"
    if missing := [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]:
        return f"there is no {missing[0]} here (Debian: iproute2, util-linux, mount)"
    name = f"moa-try-{secrets.token_hex(3)}"
    try:
        os.close(_open_tun()[0])
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except OSError as error:
        return f"no TUN device can be made here ({error})"
    except Refused as error:
        return f"no network namespace can be made here ({error})"
    return ""


class Refused(Exception):
    """What `ip` said."""


class Wire:
    """The hosts' network, from outside. As a context manager: at the end neither hosts nor what runs in them is left.

    Host number k of `hosts`, from 1 on, has the address 10.77.0.k. Nothing else can be reached from there, and they
    from nowhere else.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        self.hosts = tuple(hosts)
        self._prefix = f"moa-{secrets.token_hex(3)}-"

    def __enter__(self) -> "Wire":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cluster.wire", self._prefix, *self.hosts], cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._ask({"order": "count"})
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0

    def address(self, host: str) -> str:
        return _address(self.hosts.index(host))

    def namespace(self, host: str) -> str:
        """The name under which `ip netns` knows the host."""
        return self._prefix + host

    def socket_on(self, host: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this process whose network is the host's."""
        with ThreadPoolExecutor(1) as elsewhere:  # a thread's namespace is its own, a socket's is where it was made
            return elsewhere.submit(_socket_in, self.namespace(host), kind).result()

    def quality(self, delay_ms: float = 0.0, jitter_ms: float = 0.0, loss: float = 0.0) -> None:
        """From now on a packet takes `delay_ms` ± `jitter_ms` (uniform), and this share of all is lost."""
        self._ask({"order": "quality", "delay_ms": delay_ms, "jitter_ms": jitter_ms, "loss": loss})

    def cut(self, host: str) -> None:
        """No packet comes to the host or from it, and nobody is told."""
        self._ask({"order": "cut", "host": host})

    def mend(self, host: str) -> None:
        self._ask({"order": "mend", "host": host})

    def count(self) -> dict[str, int]:
        """Packets so far: "carried", "lost" by chance, "cut" off."""
        return self._ask({"order": "count"})

    def _ask(self, order: Mapping[str, Any]) -> dict[str, int]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the wire is gone"
        return dict(json.loads(answer))


class _Hub:
    """The packets' way."""

    def __init__(self, cards: Sequence[int]) -> None:
        self.cards = cards
        self._by_address = {socket.inet_aton(_address(number)): card for number, card in enumerate(cards)}
        self.cut = set[int]()
        self.delay = self.jitter = self.loss = 0.0  # seconds, seconds, share
        self.counts = {"carried": 0, "lost": 0, "cut": 0}
        self._under_way: list[tuple[float, int, int, bytes]] = []  # due, number, card, packet
        self._number = 0

    def read(self, card: int) -> None:
        """What a host has sent."""
        for _ in range(_MOST):
            try:
                packet = os.read(card, 1 << 16)
            except BlockingIOError:
                return
            target = self._by_address.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if target is None:
                continue  # IPv6's looking around, and addresses of nobody
            if card in self.cut:
                self.counts["cut"] += 1
            elif self.loss and random.random() < self.loss:
                self.counts["lost"] += 1
            elif self.delay or self.jitter:
                due = time.monotonic() + max(0.0, self.delay + random.uniform(-self.jitter, self.jitter))
                heapq.heappush(self._under_way, (due, self._number, target, packet))
                self._number += 1
            else:
                self._arrive(target, packet)

    def deliver(self) -> float | None:
        """Hand over what is due; seconds until there is more, None where nothing is under way."""
        while self._under_way and (left := self._under_way[0][0] - time.monotonic()) <= 0:
            self._arrive(*heapq.heappop(self._under_way)[2:])
        return left if self._under_way else None

    def _arrive(self, card: int, packet: bytes) -> None:
        if card in self.cut:
            self.counts["cut"] += 1
            return
        with contextlib.suppress(OSError):  # a card's queue that is full drops packets, too
            os.write(card, packet)
            self.counts["carried"] += 1

    def obey(self, order: Mapping[str, Any], hosts: Sequence[str]) -> dict[str, int]:
        if order["order"] == "quality":
            self.delay, self.jitter = order["delay_ms"] / 1000, order["jitter_ms"] / 1000
            self.loss = order["loss"]
        elif order["order"] in ("cut", "mend"):
            card = self.cards[hosts.index(order["host"])]
            (self.cut.add if order["order"] == "cut" else self.cut.discard)(card)
        return self.counts


def main(prefix: str, hosts: Sequence[str]) -> None:
    """Make the hosts, carry their packets until nobody listens any more, and remove them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        hub = _Hub([_make_host(prefix + host, number) for number, host in enumerate(hosts)])
        _carry(hub, hosts)
    finally:
        for host in hosts:
            _remove_host(prefix + host)


def _carry(hub: _Hub, hosts: Sequence[str]) -> None:
    orders = b""
    with selectors.DefaultSelector() as selector:
        for card in hub.cards:
            selector.register(card, selectors.EVENT_READ)
        selector.register(0, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select(hub.deliver()):
                if key.fd != 0:
                    hub.read(key.fd)
                    continue
                if not (said := os.read(0, 1 << 16)):
                    return
                *whole, orders = (orders + said).split(b"\n")
                for line in whole:
                    print(json.dumps(hub.obey(json.loads(line), hosts)), flush=True)


def _make_host(namespace: str, number: int) -> int:
    """The namespace with its card; the card's other end."""
    _ip("netns", "add", namespace)
    card, name = _open_tun()
    # The other end stays with this process, wherever the card goes.
    _ip("link", "set", "dev", name, "netns", namespace)
    for words in (
        ["link", "set", "dev", name, "name", "eth0"],
        ["link", "set", "dev", "eth0", "mtu", str(_MTU)],
        ["address", "add", f"{_address(number)}/24", "dev", "eth0"],
        ["link", "set", "dev", "lo", "up"],
        ["link", "set", "dev", "eth0", "up"],
    ):
        _ip("-netns", namespace, *words)
    return card


def _remove_host(namespace: str) -> None:
    while True:
        try:
            pids = [int(pid) for pid in _ip("netns", "pids", namespace).split()]
        except Refused:
            return  # it was never made
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    _ip("netns", "delete", namespace)


def _socket_in(namespace: str, kind: socket.SocketKind) -> socket.socket:
    with open(f"/run/netns/{namespace}") as file:
        libc = ctypes.CDLL(None, use_errno=True)  # os.setns is Python 3.12's
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")
    return socket.socket(socket.AF_INET, kind)


def _open_tun() -> tuple[int, str]:
    """A new TUN device of the kernel's naming, and the descriptor that it lives as long as."""
    card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        made = fcntl.ioctl(card, _TUNSETIFF, struct.pack("16sH22x", b"moa%d", _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(card)
        raise
    return card, made[:16].rstrip(b"\0").decode()


def _address(number: int) -> str:
    return f"{_NETWORK}{number + 1}"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr.strip())
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
