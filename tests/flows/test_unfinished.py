"""Retrainings that ended badly, on a real server."""

from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, State

from flows.deploy import deploy
from flows.unfinished import Unfinished
from infra.settings import Settings, load_settings
from tests.flows.test_slots import Clock


def _settings(model: str, tmp_path: Path) -> Settings:
    changes = {"publish.model": model, "service.pool": f"pool-{model}"}
    return load_settings("demo", tmp_path, {**changes, "service.again_minutes": "2", "service.again_times": "2"})


def _ended(client: SyncPrefectClient, deployment: Any, state: State[Any], **more: Any) -> Any:
    run = client.create_flow_run_from_deployment(deployment.id, **more)
    return _end(client, run, state)


def _end(client: SyncPrefectClient, run: Any, state: State[Any]) -> Any:
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def _due(client: SyncPrefectClient, deployment: Any) -> list[Any]:
    runs = [run for run in client.read_flow_runs() if run.deployment_id == deployment.id]
    return [run for run in runs if run.state.is_scheduled() and not run.auto_scheduled]


def test_what_crashed_is_started_again_later_each_time_and_not_for_ever(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings, clock = _settings("crashed", tmp_path), Clock()
    unfinished = Unfinished(prefect_client, settings, clock)
    assert unfinished.look() == []  # nothing is deployed
    deploy(prefect_client, settings, {"preset": "demo"})
    deployment = prefect_client.read_deployment_by_name("retrain/crashed")
    for schedule in deployment.schedules:  # by the clock below, tonight's run would be due
        prefect_client.delete_deployment_schedule(deployment.id, schedule.id)
    assert unfinished.look() == []
    first = _ended(prefect_client, deployment, Crashed(message="killed"), parameters={"from_scratch": True})
    assert unfinished.look() == []  # what it needs may be starting again
    clock.now += 150
    (said,) = unfinished.look()
    assert first.name in said and "Crashed (killed)" in said and "1 of at most 2" in said
    (second,) = _due(prefect_client, deployment)
    assert second.parameters == {**deployment.parameters, "from_scratch": True}  # the same again
    assert unfinished.look() == [] and len(_due(prefect_client, deployment)) == 1
    _end(prefect_client, second, Failed(message="The store cannot be used."))
    assert unfinished.look() == []  # twice as long now
    clock.now += 150
    (said,) = unfinished.look()
    assert "Failed (The store cannot be used.)" in said and "2 of at most 2" in said
    (third,) = _due(prefect_client, deployment)
    _end(prefect_client, third, Failed(message="The store cannot be used."))
    clock.now += 100_000
    assert unfinished.look() == []  # people have been told three times
    _ended(prefect_client, deployment, Completed())
    _ended(prefect_client, deployment, Crashed(message="killed"))
    assert len(unfinished.look()) == 1  # another story


def test_what_people_decided_stays_and_what_goes_on_is_waited_for(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings, clock = _settings("decided", tmp_path), Clock()
    unfinished = Unfinished(prefect_client, settings, clock)
    deploy(prefect_client, settings, {"preset": "demo"})
    deployment = prefect_client.read_deployment_by_name("retrain/decided")
    clock.now += 1000
    for state in (Cancelled(), Failed(name="Refused", message="None of 5 new photos can be used."), Completed()):
        _ended(prefect_client, deployment, state)
        assert unfinished.look() == []
    _ended(prefect_client, deployment, Crashed(message="killed"))
    going = prefect_client.create_flow_run_from_deployment(deployment.id)
    assert unfinished.look() == []  # another one is due: it takes all photos
    prefect_client.set_flow_run_state(going.id, Running(), force=True)
    assert unfinished.look() == []
    _end(prefect_client, going, Completed())
    assert unfinished.look() == []
