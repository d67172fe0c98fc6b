"""On a real server, with a real listener for the webhook."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.events import Event
from prefect.states import Failed, Pending, Running, Scheduled

from flows import events
from flows.deploy import deploy, model_tag
from infra.errors import UserError
from infra.settings import Settings, load_settings
from tests.prefect_process import PrefectServer
from tests.webhook import Heard, listening

SECRET = "MOA_TEST_HOOK"


def _settings(model: str, tmp_path: Path, **service: Any) -> Settings:
    changes = {"publish.model": model, "service.pool": f"pool-{model}", "service.notify_secret": SECRET}
    settings = load_settings("demo", tmp_path, {**changes, "service.notify": "webhook"})
    # Shorter than a preset may say, or a test would wait for minutes.
    return settings.model_copy(update={"service": settings.service.model_copy(update=service)})


def _done(found: Any) -> dict[str, str]:
    return {f"{one.kind} {one.name}": one.done for one in found if one.kind in ("automation", "block")}


def _run(client: SyncPrefectClient, deployment: Any, *states: Any) -> Any:
    run = client.create_flow_run_from_deployment(deployment.id, state=Scheduled(scheduled_time=_in_an_hour()))
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return run


def _in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


def _tell(client: SyncPrefectClient, settings: Settings, name: str, **payload: Any) -> None:
    event = Event(event=name, resource=events.resource(settings), payload=payload)
    client.request("POST", "/events", json=[event.model_dump(mode="json")])


def _until(found: Callable[[], Any], heard: Heard) -> Any:
    deadline = time.monotonic() + 120
    while not (value := found()):
        assert time.monotonic() < deadline, heard.texts()
        time.sleep(0.1)
    return value


def test_the_operator_is_told(
    prefect_client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run failed, one is late, one was killed, a batch and a release are refused, and no photo came; nothing else."""
    with listening() as heard:
        monkeypatch.setenv(SECRET, heard.address)
        settings = _settings("told", tmp_path, heartbeat_seconds=4, silent_days=15 / 86_400)
        deploy(prefect_client, settings, {"preset": "demo"})
        stage = prefect_client.read_deployment_by_name("ingest-alone/told")
        lives = _run(prefect_client, stage, Pending(), Running())
        # As a flow's engine says it; from the killed run no second one comes.
        for run in (lives, killed := _run(prefect_client, stage, Pending(), Running())):
            _heartbeat(prefect_client, settings, run)
        failed = _run(prefect_client, stage, Pending(), Running(), Failed(message='the "store" is away'))
        late = prefect_client.create_flow_run_from_deployment(
            stage.id, state=Scheduled(scheduled_time=datetime.now(UTC) - timedelta(minutes=1))
        )
        _tell(prefect_client, settings, events.BATCH_REFUSED, says='none of "5" photos')
        _tell(prefect_client, settings, events.GATE_REFUSED, says="told@2 is worse")
        _tell(prefect_client, settings, events.PROMOTED, says="not to be told")

        def texts(*words: str) -> list[str]:
            _heartbeat(prefect_client, settings, lives)
            time.sleep(0.4)
            return [text for text in heard.texts() if all(word in text for word in words)]

        _until(lambda: texts(failed.name, 'is Failed: the "store" is away'), heard)
        _until(lambda: texts(late.name, "is Late", "is one at work in its pool?"), heard)
        _until(lambda: texts('moa: none of "5" photos'), heard)
        _until(lambda: texts("moa: told@2 is worse"), heard)
        _until(lambda: texts("no photo was ingested", "by the model told"), heard)
        _until(lambda: texts(killed.name, "is Crashed: Nothing was heard of its process for 12 s"), heard)
        assert prefect_client.read_flow_run(killed.id).state.is_crashed()
        assert prefect_client.read_flow_run(lives.id).state.is_running()
        assert not [text for text in heard.texts() if "not to be told" in text or lives.name in text]
        assert {one["event"] for one in heard.messages} >= {events.BATCH_REFUSED, "prefect.flow-run.Failed"}


def _heartbeat(client: SyncPrefectClient, settings: Settings, run: Any) -> None:
    tag = {"prefect.resource.id": f"prefect.tag.{model_tag(settings)}", "prefect.resource.role": "tag"}
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name}
    event = Event(event="prefect.flow-run.heartbeat", resource=resource, related=[tag])
    client.request("POST", "/events", json=[event.model_dump(mode="json")])


WAITS = """
import sys, time
from pathlib import Path
from flows.session import alone_in
with alone_in(Path(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.mark.timeout(600)
@pytest.mark.faults  # two minutes: Prefect's shortest heartbeat is 30 s, and three have to be missing
def test_a_run_whose_process_and_worker_are_killed_is_crashed(
    prefect_client: SyncPrefectClient, prefect_process: PrefectServer, tmp_path: Path
) -> None:
    """By the heartbeats of Prefect's own engine. The run waits for another one, and meanwhile it lives."""
    settings = _settings("zombie", tmp_path, notify="", heartbeat_seconds=30)
    parameters = {"preset": "demo", "workspace": str(tmp_path), "changes": ["paperfolk.photos=4"]}
    deploy(prefect_client, settings, parameters)
    deployment = prefect_client.read_deployment_by_name("retrain/zombie")
    run = prefect_client.create_flow_run_from_deployment(deployment.id)
    prefect_client.set_flow_run_state(run.id, Pending())
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    engine = {"PREFECT_API_URL": prefect_process.address, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    holder = [sys.executable, "-c", WAITS, str(tmp_path)]
    with subprocess.Popen(holder, stdout=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout is not None and other.stdout.readline().strip() == "at work"
            command = [sys.executable, "-m", "prefect.engine", str(run.id)]
            with subprocess.Popen(command, env=environment | engine, cwd=tmp_path) as process:
                try:
                    wanted = {
                        "event": {"name": ["prefect.flow-run.heartbeat"]},
                        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
                    }
                    _wait(
                        lambda: prefect_client.request("POST", "/events/filter", json={"filter": wanted}).json()[
                            "events"
                        ]
                    )
                    assert prefect_client.read_flow_run(run.id).state.is_running()
                finally:
                    process.kill()
        finally:
            other.kill()
    _wait(lambda: prefect_client.read_flow_run(run.id).state.is_crashed())
    message = prefect_client.read_flow_run(run.id).state.message
    assert message.startswith("Nothing was heard of its process for 90 s")


def _wait(found: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 250
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_the_second_time_nothing_changes_and_what_is_not_wanted_goes(
    prefect_client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, parameters = _settings("again", tmp_path), {"preset": "demo"}
    with pytest.raises(UserError, match=f"{SECRET} is not set: export it with the address of the webhook"):
        deploy(prefect_client, settings, parameters)
    monkeypatch.setenv(SECRET, "http://127.0.0.1:9/one")
    planned = _done(deploy(prefect_client, settings, parameters, dry_run=True))
    first = _done(deploy(prefect_client, settings, parameters))
    assert "automation moa/again: a run failed" in first and set(first.values()) == {"created"}
    assert planned.keys() >= first.keys() - {"automation moa/again: new photos start retrain"}  # needs the deployment
    assert set(_done(deploy(prefect_client, settings, parameters)).values()) == {"unchanged"}
    monkeypatch.delenv(SECRET)  # it is in the block
    assert set(_done(deploy(prefect_client, settings, parameters)).values()) == {"unchanged"}
    monkeypatch.setenv(SECRET, "http://127.0.0.1:9/two")
    changed = _done(deploy(prefect_client, settings, parameters))
    assert changed.pop("block moa-again-webhook") == "changed: its secret" and set(changed.values()) == {"unchanged"}
    longer = _settings("again", tmp_path, silent_days=3)
    changed = _done(deploy(prefect_client, longer, parameters))
    assert changed.pop("automation moa/again: nothing was ingested") == "changed: trigger, actions"
    assert set(changed.values()) == {"unchanged"}
    silent = _done(deploy(prefect_client, _settings("again", tmp_path, notify=""), parameters))
    assert silent["automation moa/again: a run failed"] == "deleted"
    assert silent["automation moa/again: a run that no longer lives is crashed"] == "unchanged"


@pytest.mark.parametrize(("notify", "more"), [("slack", {}), ("email", {"notify_sender": "a@example.org"})])
def test_slack_and_e_mail_are_blocks_of_prefects_own(
    notify: str,
    more: dict[str, Any],
    prefect_client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(
        SECRET,
        "https://hooks.slack.com/services/T00000000/B00000000/xxxxxxxxxxxxxxxxxxxxxxxx" if notify == "slack" else "key",
    )
    settings = _settings(notify, tmp_path, notify=notify, **more)
    if notify == "email":
        with pytest.raises(UserError, match="set service.notify_sender and service.notify_to"):
            deploy(prefect_client, settings, {"preset": "demo"})
        settings = _settings(notify, tmp_path, notify=notify, **more, notify_to=["b@example.org"])
    found = _done(deploy(prefect_client, settings, {"preset": "demo"}))
    assert found[f"block moa-{notify}-{notify}"] == "created"
    (told,) = [one for one in prefect_client.read_automations() if one.name == f"moa/{notify}: a run failed"]
    assert told.actions[0].type == "send-notification" and "{{ flow_run.name }}" in told.actions[0].body
    assert set(_done(deploy(prefect_client, settings, {"preset": "demo"})).values()) == {"unchanged"}
