"""The Prefect server that commands speak with: PREFECT_API_URL's, or the one that `moa up` starts on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.request import urlopen

from infra.errors import UserError
from infra.settings import Settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient


def server_address(settings: Settings) -> str:
    """Where it should be."""
    return os.environ.get("PREFECT_API_URL") or f"http://127.0.0.1:{settings.service.prefect_port}/api"


def answers(address: str, seconds: float = 1.0) -> bool:
    """Whether a Prefect server is there, without importing Prefect, which takes a second."""
    try:
        with urlopen(f"{address}/health", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


@contextmanager
def prefect_server(settings: Settings) -> Iterator["SyncPrefectClient"]:
    """A client of it; within the block it is Prefect's own default as well. UserError where nobody answers."""
    address = server_address(settings)
    if not answers(address, 10.0):
        raise UserError(f"No Prefect server answers at {address}: start one with moa up, or set PREFECT_API_URL.")
    from prefect.client.orchestration import get_client
    from prefect.settings import temporary_settings

    with temporary_settings(updates={"api.url": address}), get_client(sync_client=True) as client:
        yield client
