from collections.abc import Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import temporary_settings

from tests.infra.conftest import s3_address, s3_store
from tests.prefect_process import PrefectServer

__all__ = ["s3_address", "s3_store"]


@pytest.fixture(scope="session")
def prefect_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """One real server, with its triggers and its services, for all files that want one."""
    soon = {
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1",
        "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
    }
    with PrefectServer(tmp_path_factory.mktemp("prefect-server"), soon) as server:
        yield server


@pytest.fixture
def prefect_client(prefect_process: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    """A client of it, which is Prefect's own default as well."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_process.address)
    updates = {"api.url": prefect_process.address}
    with temporary_settings(updates=updates), get_client(sync_client=True) as client:
        yield client
