"""Deployed flows as a worker calls them; a whole retraining by a worker: tests/end_to_end/test_service.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from flows import deployed
from infra.errors import UserError
from infra.settings import load_settings


def test_the_form_makes_the_settings_that_the_command_would(tmp_path: Path) -> None:
    form = {
        "preset": "demo",
        "source": f"folder:{tmp_path}",
        "storage_root": "s3://bucket/moa",
        "workspace": str(tmp_path),
        "changes": ["train.steps=7"],
    }
    same = {"ingest.source": f"folder:{tmp_path}", "storage.root": "s3://bucket/moa", "train.steps": "7"}
    assert deployed.settings_of(form) == load_settings("demo", tmp_path, same)
    with pytest.raises(UserError, match="no preset 'nope'"):
        deployed.settings_of({"preset": "nope"})


def test_a_mistake_is_the_runs_state_in_one_sentence(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    state = deployed.retrain(source="folder:/nowhere/to/be/found", workspace=str(tmp_path), return_state=True)
    assert state.is_failed() and "/nowhere/to/be/found" in state.message and "Traceback" not in state.message
    state = deployed.ingest(changes=["train.stepz=1"], workspace=str(tmp_path), return_state=True)
    assert state.is_failed() and "no setting 'train.stepz'" in state.message


def test_nothing_in_production_is_no_mistake(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    state = deployed.evaluate_production(workspace=str(tmp_path), return_state=True)
    assert state.is_completed() and state.message == "Nothing is in production yet."


HOLDS = """
import sys, time
from pathlib import Path
from flows.session import alone_in
with alone_in(Path(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(600)
"""


def test_who_comes_by_the_clock_is_put_off_where_another_run_is_at_work(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout is not None and other.stdout.readline().strip() == "at work"
            state = deployed.sweep(workspace=str(tmp_path), return_state=True)
        finally:
            other.kill()
    assert state.is_completed() and state.message.startswith("Put off: Another run is at work in")


def test_a_sweep_by_schedule(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    litter = tmp_path / "store" / "shards" / "ingest" / "left.tar"
    litter.parent.mkdir(parents=True)
    litter.write_bytes(b"123")
    state = deployed.sweep(workspace=str(tmp_path), return_state=True)
    assert state.is_completed() and state.message.startswith("1 shards of killed runs") and not litter.exists()
