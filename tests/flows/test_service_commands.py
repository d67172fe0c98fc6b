"""The service's commands as people type them; `up` and `down` of all of it: tests/end_to_end/test_service.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from typer.testing import CliRunner

from flows.cli import app
from infra.errors import UserError


def _moa(*arguments: str) -> Any:
    done = CliRunner().invoke(app, [*arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_deploy_twice_by_the_command(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    command = ["deploy", "--json", "--workspace", str(tmp_path), "--source", f"folder:{tmp_path}"]
    command += ["--set", "publish.model=typed", "--set", "service.pool=pool-typed"]
    planned = json.loads(_moa(*command, "--dry-run").stdout)
    assert planned["dry_run"] and {one["change"] for one in planned["changes"]} == {"created"}
    assert {one["change"] for one in json.loads(_moa(*command).stdout)["changes"]} == {"created"}
    assert {one["change"] for one in json.loads(_moa(*command).stdout)["changes"]} == {"unchanged"}
    there = prefect_client.read_deployment_by_name("retrain/typed")
    assert there.parameters["source"] == f"folder:{tmp_path}" and there.parameters["workspace"] == str(tmp_path)
    assert there.parameters["changes"] == ["publish.model=typed", "service.pool=pool-typed"]


@pytest.mark.parametrize("command", ["deploy", "watch"])
def test_without_a_server_it_is_one_sentence(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(UserError, match="No Prefect server answers at http://127.0.0.1:9/api: start one with moa up"):
        _moa(command, "--workspace", str(tmp_path))


def test_sweep_says_what_it_would_delete_and_deletes_it(tmp_path: Path) -> None:
    litter = tmp_path / "store" / "shards" / "ingest" / "left.tar"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"123")
    found = json.loads(_moa("sweep", "--dry-run", "--json", "--workspace", str(tmp_path)).stdout)
    assert found["objects"] == {"shards/ingest/left.tar": 3} and litter.exists()
    assert "Deleted: 1 shards of killed runs" in _moa("sweep", "--workspace", str(tmp_path)).stdout
    assert not litter.exists()


def test_up_says_what_it_would_start(tmp_path: Path) -> None:
    source = f"folder:{tmp_path}"
    found = json.loads(_moa("up", "--dry-run", "--json", "--workspace", str(tmp_path / "w"), "--source", source).stdout)
    commands = {one["part"]: one["command"] for one in found}
    assert f"--source {source}" in commands["watcher"] and f"--source {source}" in commands["deploy"]
    assert not (tmp_path / "w" / "service").exists()


def test_down_where_nothing_is_up(tmp_path: Path) -> None:
    assert f"Nothing of {tmp_path / 'service'} is up." in _moa("down", "--workspace", str(tmp_path)).stdout


def test_doctor_for_programs(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json", "--workspace", str(tmp_path)])
    assert {"name", "ok", "detail"} == json.loads(done.stdout)[0].keys()
