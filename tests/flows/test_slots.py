"""Slots on a real server, leaked as they leak in life: a run deleted, a process that never came, a server restarted."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.settings import temporary_settings
from prefect.states import Cancelled, Pending, Running

from flows.deploy import deploy, model_tag
from flows.slots import Slots
from infra.settings import Settings, load_settings
from tests.prefect_process import PrefectServer


class Clock:
    """Time that a test lets pass."""

    def __init__(self) -> None:
        import time

        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def _deployed(client: SyncPrefectClient, model: str, tmp_path: Path) -> tuple[Settings, Any]:
    settings = load_settings("demo", tmp_path, {"publish.model": model, "service.pool": f"pool-{model}"})
    deploy(client, settings, {"preset": "demo"})
    return settings, client.read_deployment_by_name(f"retrain/{model}")


def _taken(client: SyncPrefectClient, deployment: Any) -> int:
    return client.read_global_concurrency_limit_by_name(deployment.global_concurrency_limit.name).active_slots


def _begin(client: SyncPrefectClient, deployment: Any) -> tuple[Any, str]:
    """A run that asks to start, as a worker does; the state that it got."""
    run = client.create_flow_run_from_deployment(deployment.id)
    client.set_flow_run_state(run.id, Pending())
    return run, client.read_flow_run(run.id).state.name


def test_a_second_run_waits_and_goes_on_when_the_first_is_cancelled(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings, deployment = _deployed(prefect_client, "waits", tmp_path)
    first, state = _begin(prefect_client, deployment)
    assert state == "Pending" and _taken(prefect_client, deployment) == 1
    second, state = _begin(prefect_client, deployment)
    assert state == "AwaitingConcurrencySlot"
    assert Slots(prefect_client, model_tag(settings), 600).look() == []  # a slot that is held is left alone
    assert _taken(prefect_client, deployment) == 1
    prefect_client.set_flow_run_state(first.id, Cancelled(), force=True)
    prefect_client.set_flow_run_state(second.id, Pending(), force=False)
    assert _taken(prefect_client, deployment) == 1


def test_a_run_whose_process_never_came_is_ended_and_its_slot_is_free(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings, deployment = _deployed(prefect_client, "stuck", tmp_path)
    stuck, _ = _begin(prefect_client, deployment)
    clock = Clock()
    slots = Slots(prefect_client, model_tag(settings), 600, clock=clock)
    assert slots.look() == []
    clock.now += 601
    (said,) = slots.look()
    assert stuck.name in said and "its process never came" in said
    assert prefect_client.read_flow_run(stuck.id).state.is_crashed()
    assert _taken(prefect_client, deployment) == 0
    assert _begin(prefect_client, deployment)[1] == "Pending"


def test_a_slot_that_no_run_holds_is_freed_once_no_lease_can_explain_it(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings, deployment = _deployed(prefect_client, "leaked", tmp_path)
    limit = deployment.global_concurrency_limit.name
    prefect_client.update_global_concurrency_limit(limit, GlobalConcurrencyLimitUpdate(active_slots=1))
    clock = Clock()
    slots = Slots(prefect_client, model_tag(settings), 600, lease_seconds=300, clock=clock)
    assert _begin(prefect_client, deployment)[1] == "AwaitingConcurrencySlot"
    assert slots.look() == [] and _taken(prefect_client, deployment) == 1  # it may be on its way
    clock.now += 301
    (said,) = slots.look()
    assert "no run held it: 1 -> 0" in said and _taken(prefect_client, deployment) == 0
    run, state = _begin(prefect_client, deployment)
    assert state == "Pending"
    prefect_client.set_flow_run_state(run.id, Running())
    clock.now += 301
    assert slots.look() == [] and _taken(prefect_client, deployment) == 1


@pytest.mark.faults  # two servers, each started twice
@pytest.mark.parametrize("storage", ["memory", "filesystem"])
def test_a_server_that_was_killed_in_the_middle_of_a_run(storage: str, tmp_path: Path) -> None:
    """With leases in memory, Prefect's default, its slot leaks when the run is deleted; we free it. On disk, as moa up
    has it, the run keeps its lease."""
    module = f"prefect.server.concurrency.lease_storage.{storage}"
    environment = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": module}
    with PrefectServer(tmp_path / "server", environment) as server, temporary_settings({"api.url": server.address}):
        with get_client(sync_client=True) as client:
            settings, deployment = _deployed(client, "restarted", tmp_path)
            run, _ = _begin(client, deployment)
            client.set_flow_run_state(run.id, Running())
            lease = client.read_flow_run(run.id).state.state_details.deployment_concurrency_lease_id
            server.kill()
            server.start()
            renewed = httpx.post(
                f"{server.address}/v2/concurrency_limits/leases/{lease}/renew", json={"lease_duration": 300}
            )
            assert (renewed.status_code == 204) == (storage == "filesystem")
            client.delete_flow_run(run.id)
            clock = Clock()
            slots = Slots(client, model_tag(settings), 600, clock=clock)
            slots.look()
            clock.now += 301
            slots.look()
            assert _taken(client, deployment) == 0
            assert _begin(client, deployment)[1] == "Pending"
