"""Ports that nobody listens on."""

import socket
from contextlib import ExitStack

import pytest

from infra import ports
from infra.ports import free_ports, is_free


def test_ports_are_different_and_can_be_listened_on() -> None:
    found = free_ports(20)
    assert len(set(found)) == 20
    with ExitStack() as listening:
        for port in found:
            listening.enter_context(socket.create_server(("127.0.0.1", port)))


def test_a_port_that_is_taken_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_ports(2)
    monkeypatch.setattr(ports, "_PORTS", range(min(first, second), max(first, second) + 1, abs(first - second)))
    with socket.create_server(("127.0.0.1", first)):
        assert not is_free(first) and is_free(second)
        assert free_ports(1) == [second]
        with pytest.raises(OSError, match="fewer than 2"):
            free_ports(2)
