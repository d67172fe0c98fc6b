"""Ports of this machine that nobody listens on."""

import random
import socket

# Below those from which systems give connections their own ends (32768 and up on Linux), or else one of these may have
# the port before its server, which can take seconds to listen; above those of Ray's workers (10002 to 19999).
_PORTS = range(20_000, 30_000)


def free_ports(count: int) -> list[int]:
    """So many different ones on loopback; free at this moment, for whoever listens soon. OSError if there are fewer."""
    found: list[int] = []
    tried = iter(random.SystemRandom().sample(_PORTS, len(_PORTS)))
    while len(found) < count:
        port = next(tried, None)
        if port is None:
            raise OSError(f"fewer than {count} of the ports {_PORTS[0]} to {_PORTS[-1]} are free")
        if is_free(port):
            found.append(port)
    return found


def is_free(port: int) -> bool:
    """Whether a server may listen on it on loopback at this moment."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
