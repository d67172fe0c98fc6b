"""Hosts have a name, a disk and processes of their own; killed, nothing runs there any more, and the disk stays."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cluster.hosts import Hosts
from tests.cluster.wire import Wire, why_no_wire

WHY_NOT = why_no_wire()
pytestmark = [pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT), pytest.mark.xdist_group("wire")]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Wire(["ada", "bob"]) as wire, Hosts(wire, {"GREETING": "hello"}) as hosts:
        yield hosts
    assert not hosts.base.exists()


def test_a_host_knows_itself_and_the_others(hosts: Hosts) -> None:
    code = "import os, socket; print(socket.gethostname(), *map(socket.gethostbyname, ['ada', 'bob']), os.getpid())"
    hosts.start(
        "ada", [sys.executable, "-c", code + "; print(os.environ['GREETING'], os.environ['TMPDIR'], os.getcwd())"]
    )
    _until(lambda: hosts.ended("ada") == 0, hosts)
    name, ada, bob, pid, greeting, *own = hosts.said("ada").split()
    assert (name, ada, bob, greeting) == ("ada", "10.77.0.1", "10.77.0.2", "hello")
    assert int(pid) < 10 and own == [str(hosts.own)] * 2


def test_a_killed_host_runs_nothing_and_keeps_its_disk(hosts: Hosts) -> None:
    hosts.start(
        "bob", ["sh", "-c", f"echo kept >> {hosts.own}/note; setsid sleep 600 & cat {hosts.own}/note; sleep 600"]
    )
    _until(lambda: "kept" in hosts.said("bob") and len(hosts.pids("bob")) >= 4, hosts)
    hosts.kill("bob")
    assert hosts.pids("bob") == []
    hosts.start_again("bob")
    _until(lambda: hosts.said("bob").count("kept") == 3, hosts)
    hosts.kill("bob")
    hosts.start("ada", ["sh", "-c", f"ls {hosts.own} {hosts.base}/disks; echo looked"])
    _until(lambda: "looked" in hosts.said("ada"), hosts)
    assert "note" not in hosts.said("ada") and "bob" not in hosts.said("ada").splitlines()


def _until(found: Callable[[], Any], hosts: Hosts) -> None:
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline, hosts.said("ada") + hosts.said("bob")
        time.sleep(0.02)
