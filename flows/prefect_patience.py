"""Prefect's client gives up at the first connection that is refused, unless that very client was connected before; and
each stage of a run has a client of its own. A server that is started anew would end the runs that are just going from
one stage to the next.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

_lock = threading.Lock()
_runs = 0  # that this process is within


@contextmanager
def patient_clients() -> Iterator[None]:
    """Within it, every client tries again as one that was connected before: PREFECT_CLIENT_MAX_RETRIES times, later
    each time. For runs: they know that their server's address is right."""
    global _runs
    with _lock:
        _runs += 1
    try:
        yield
    finally:
        with _lock:
            _runs -= 1


def _connected(client: Any) -> bool:
    return _runs > 0 or bool(client.__dict__.get("_moa_connected"))


def _note(client: Any, value: bool) -> None:
    client.__dict__["_moa_connected"] = value


for _kind in (PrefectHttpxAsyncClient, PrefectHttpxSyncClient):
    _kind._has_connected = property(_connected, _note)  # type: ignore[assignment]
