"""Which ports of our processes other machines could reach."""

from collections.abc import Iterable
from ipaddress import ip_address

import psutil


def open_ports(processes: Iterable[psutil.Process]) -> list[tuple[str, str, int]]:
    """Process, address and port of everything that waits for connections."""
    return [
        (process.name(), one.laddr.ip.removeprefix("::ffff:"), one.laddr.port)
        for process in processes
        for one in process.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]


def reached_from_outside(ports: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Of these the ones that are not on loopback."""
    return [port for port in ports if not ip_address(port[1]).is_loopback]
