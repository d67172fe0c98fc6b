"""`moa status` with a real server, and with none."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Failed, Late, Pending, Running, Scheduled

from flows.deploy import deploy
from flows.run import Run
from flows.status import read_status, show_status
from flows.watch import watch
from infra.settings import Settings, load_settings


def _settings(tmp_path: Path, model: str, **more: str) -> Settings:
    (tmp_path / "photos").mkdir(exist_ok=True)
    changes = {
        "publish.model": model,
        "ingest.source": f"folder:{tmp_path / 'photos'}",
        "service.pool": f"pool-{model}",
    }
    return load_settings("demo", tmp_path, {**changes, **more})


def _publish(settings: Settings) -> None:
    releases = Run(settings).releases
    first = releases.publish({"adapter.bin": b"1"}, {"run_id": "a", "verdict": {"promote": True, "reasons": []}})
    releases.promote("production", first.id, "passed the gate")
    refused = {"promote": False, "reasons": ["identity is worse by 0.1"]}
    releases.publish({"adapter.bin": b"2"}, {"run_id": "b", "verdict": refused})


def test_what_runs_what_waits_and_what_failed(
    prefect_client: SyncPrefectClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _settings(tmp_path, "busy")
    _publish(settings)
    deploy(prefect_client, settings, {"preset": "demo"})
    watch(settings, lambda line: None, rounds=1)
    retrain = prefect_client.read_deployment_by_name("retrain/busy")
    stage = prefect_client.read_deployment_by_name("ingest-alone/busy")
    running = prefect_client.create_flow_run_from_deployment(retrain.id)
    for state in (Pending(), Running()):
        prefect_client.set_flow_run_state(running.id, state)
    waiting = prefect_client.create_flow_run_from_deployment(retrain.id)
    prefect_client.set_flow_run_state(waiting.id, Pending())  # its slot is taken
    tomorrow = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(days=1))
    for _ in range(3):
        prefect_client.create_flow_run_from_deployment(stage.id, state=tomorrow)
    failed = prefect_client.create_flow_run_from_deployment(stage.id)
    for state in (Pending(), Running(), Failed(message="the store is away")):
        prefect_client.set_flow_run_state(failed.id, state, force=True)
    late = prefect_client.create_flow_run_from_deployment(stage.id)
    prefect_client.set_flow_run_state(late.id, Late(), force=True)

    found = read_status(settings)
    assert found["server"]["reachable"]
    assert [(one["flow"], one["run"]) for one in found["running"]] == [("retrain", running.name)]
    waits = {one["run"]: one["state"] for one in found["waiting"]}
    assert waits[waiting.name] == "AwaitingConcurrencySlot" and waits[late.name] == "Late"
    scheduled = [one["flow"] for one in found["waiting"] if one["state"] == "Scheduled"]
    assert scheduled.count("ingest-alone") == 1  # of what is planned, the next
    assert [(one["run"], one["says"]) for one in found["failures"]] == [(failed.name, "the store is away")]
    assert found["production"]["release"] == 1 and found["production"]["since"] and found["releases"] == 2
    assert found["newest"] == {"release": 2, "promote": False, "reasons": ["identity is worse by 0.1"]}
    assert found["watcher"]["alive"] and found["watcher"]["objects"] == 0
    show_status(found)
    said = capsys.readouterr().out
    assert "production: release 1" in said and "which the gate refused: identity is worse" in said
    assert "the store is away" in said


def test_without_a_server_the_store_is_asked_and_that_is_said(tmp_path: Path) -> None:
    """By the command, whose process never imports what takes long."""
    settings = _settings(tmp_path, "moa")
    _publish(settings)
    code = (
        "import sys; sys.argv = ['moa', *sys.argv[1:]]\nfrom flows import cli\n"
        "status = cli._run()\n"
        "slow = sorted({'prefect', 'ray', 'torch', 'polars'} & set(sys.modules))\n"
        "print(slow, file=sys.stderr); sys.exit(status)"
    )
    environment = os.environ | {
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, "status", "--json", "--workspace", str(tmp_path)],
        capture_output=True, text=True, timeout=120, env=environment,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr.strip() == "[]", done.stderr
    found = json.loads(done.stdout)
    assert not found["server"]["reachable"] and found["server"]["says"].startswith("No Prefect server answers at http")
    assert found["production"]["release"] == 1 and found["production"]["why"] == "passed the gate"
    assert found["running"] == found["waiting"] == found["failures"] == [] and found["service"]["up"] is False


def test_a_store_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"storage.root": "s3://none/x", "storage.endpoint_url": "http://127.0.0.1:9"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        show_status(read_status(_settings(tmp_path, "moa", **more)))
    assert "The store s3://none/x" in capsys.readouterr().out
