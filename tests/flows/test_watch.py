"""The watcher on a real server, a real folder and a real S3 server."""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore

from flows import events
from flows.deploy import deploy
from flows.watch import Watcher, watch, watched_place
from infra.errors import UserError
from infra.settings import Settings, load_settings


def _settings(model: str, workspace: Path, source: str, **more: str) -> Settings:
    changes = {"publish.model": model, "ingest.source": source, "service.pool": f"pool-{model}"}
    quick = {"service.quiet_seconds": "0", "service.look_seconds": "0.1"}
    return load_settings("demo", workspace, {**changes, **quick, **more})


def _told(client: SyncPrefectClient, settings: Settings) -> list[dict[str, Any]]:
    """The payloads of what was told of the model, the first one first."""
    wanted = {
        "event": {"name": [events.ARRIVED]},
        "resource": {"id": [events.resource(settings)["prefect.resource.id"]]},
        "order": "ASC",
    }
    return [
        one["payload"] for one in client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
    ]


def _until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 120
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def test_new_photos_are_told_once_and_start_a_retraining(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    settings = _settings("folder", tmp_path / "work", f"folder:{tmp_path / 'photos'}")
    deploy(prefect_client, settings, {"preset": "demo"})
    deployment = prefect_client.read_deployment_by_name("retrain/folder")
    lines: list[str] = []
    watch(settings, lines.append, rounds=2)
    assert _told(prefect_client, settings) == []
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(b"12345")
    watch(settings, lines.append, rounds=3)
    (told,) = _until(lambda: _told(prefect_client, settings))
    assert (told["count"], told["bytes"], told["in_all"]) == (3, 15, 3)
    assert f"3 new in {tmp_path / 'photos'} (15 B): told" in lines
    (run,) = _until(
        lambda: [
            r for r in prefect_client.read_flow_runs() if r.deployment_id == deployment.id and r.auto_scheduled is False
        ]
    )
    assert run.parameters == {"preset": "demo"} and run.state.is_scheduled()
    beat = json.loads((settings.watch_folder / "beat.json").read_text())
    assert beat["objects"] == 3 and beat["place"] == str(tmp_path / "photos")


def test_one_that_was_killed_after_it_told_does_not_tell_again(
    prefect_client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings("killed", tmp_path / "work", f"folder:{tmp_path / 'photos'}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"1")
    killed = Watcher(settings, prefect_client, lambda line: None)
    with monkeypatch.context() as patch:
        patch.setattr(killed.arrivals, "told", lambda batch: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            killed.step()
    _until(lambda: _told(prefect_client, settings))
    next_one = Watcher(settings, prefect_client, lambda line: None)
    batch = next_one.step()
    assert batch is not None and batch.count == 1  # the same, now written down
    (tmp_path / "photos" / "b.jpg").write_bytes(b"1")
    assert next_one.step() is not None
    _until(lambda: len(_told(prefect_client, settings)) >= 2)
    assert [one["count"] for one in _told(prefect_client, settings)] == [1, 1]


def test_photos_that_come_while_the_server_is_away_are_told_when_it_is_back(
    prefect_client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    settings = _settings("away", tmp_path / "work", f"folder:{tmp_path / 'photos'}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"1")
    watcher = Watcher(settings, prefect_client, lambda line: None)
    there, watcher.client = watcher.client, SyncPrefectClient("http://127.0.0.1:9/api")
    with pytest.raises(httpx.HTTPError):
        watcher.step()
    watcher.client = there
    assert watcher.step() is not None
    assert [one["count"] for one in _until(lambda: _told(prefect_client, settings))] == [1]


def test_a_batch_of_which_no_run_came_is_started_by_the_watcher(
    prefect_client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is killed in the second after it took the event: it has the event, and has started nothing."""
    settings = _settings("forgot", tmp_path / "work", f"folder:{tmp_path / 'photos'}")
    deploy(prefect_client, settings, {"preset": "demo"})
    (starts,) = [one for one in prefect_client.read_automations() if one.name.startswith("moa/forgot: new photos")]
    # It expects what never comes: so it is there, and starts nothing.
    starts.trigger.expect = {"moa.never"}
    deaf = AutomationCore(name=starts.name, description="", trigger=starts.trigger, actions=starts.actions)
    prefect_client.update_automation(starts.id, deaf)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"1")
    lines: list[str] = []
    watcher = Watcher(settings, prefect_client, lines.append)
    assert watcher.step() is None and [line for line in lines if line.endswith("told")]
    assert watcher.step() is None and _asked_for(prefect_client, "forgot") == []  # it is waited for
    monkeypatch.setattr("flows.watch._TAKEN_UP_SECONDS", 0.0)
    again = Watcher(settings, prefect_client, lines.append)  # also where the first one was killed meanwhile
    _until(lambda: _told(prefect_client, settings))
    assert again.step() is not None and len(_asked_for(prefect_client, "forgot")) == 1
    assert watcher.arrivals.untold() is None and len(_told(prefect_client, settings)) == 1
    prefect_client.update_automation(starts.id, deaf.model_copy(update={"enabled": False}))  # by people
    (tmp_path / "photos" / "b.jpg").write_bytes(b"1")
    assert again.step() is not None and len(_asked_for(prefect_client, "forgot")) == 1


def _asked_for(client: SyncPrefectClient, model: str) -> list[Any]:
    """The retrainings that no schedule made."""
    deployment = client.read_deployment_by_name(f"retrain/{model}")
    return [run for run in client.read_flow_runs() if run.deployment_id == deployment.id and not run.auto_scheduled]


def test_an_s3_prefix(prefect_client: SyncPrefectClient, s3_address: str, tmp_path: Path) -> None:
    bucket = f"photos-{secrets.token_hex(6)}"
    client = boto3.client("s3", endpoint_url=s3_address)
    client.create_bucket(Bucket=bucket)
    more = {"storage.endpoint_url": s3_address}
    settings = _settings("bucket", tmp_path, f"folder:s3://{bucket}/incoming", **more)
    for number in range(5):
        client.put_object(Bucket=bucket, Key=f"incoming/{number}.jpg", Body=b"123")
    watch(settings, lambda line: None, rounds=2)
    (told,) = _until(lambda: _told(prefect_client, settings))
    assert (told["count"], told["bytes"], told["place"]) == (5, 15, f"s3://{bucket}/incoming")


def test_a_bucket_that_is_away_is_waited_for(
    prefect_client: SyncPrefectClient, s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.watch._AWAY_SECONDS", 0.0)
    more = {"storage.endpoint_url": s3_address}
    settings = _settings("nobucket", tmp_path, f"folder:s3://none-{secrets.token_hex(6)}/incoming", **more)
    lines: list[str] = []
    watch(settings, lines.append, rounds=3)
    assert len(lines) == 2 and "it is tried again" in lines[1]  # said once


def test_what_has_no_place_is_refused_in_a_sentence(tmp_path: Path) -> None:
    assert watched_place(load_settings("demo", tmp_path)) == str(tmp_path / "photos" / "ffhq")
    with pytest.raises(UserError, match="no place to watch in ingest.source 'ffhq'"):
        watched_place(load_settings("demo", tmp_path, {"ingest.source": "ffhq"}))
