"""Ports that nobody listens on."""

import socket

from infra.ports import free_ports


def test_ports_are_different_and_can_be_listened_on() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    listening = [socket.create_server(("127.0.0.1", port)) for port in ports]
    for one in listening:
        one.close()
