import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from infra.prefect_server import embedded_prefect

RUN = """
import sys
from pathlib import Path
from infra.prefect_server import embedded_prefect
from prefect import flow, get_run_logger

@flow
def journey():
    get_run_logger().info("whispered")
    get_run_logger().warning("said")
    return 41

with embedded_prefect(Path(sys.argv[1])) as address:
    assert address.startswith("http://127.0.0.1:")
    print(journey() + 1)
"""


def test_a_flow_runs_and_its_history_stays_in_the_home(tmp_path: Path) -> None:
    home = tmp_path / "runs" / "prefect"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    # In a process of its own: other tests' Prefect settings are not ours to change.
    result = subprocess.run(
        [sys.executable, "-c", RUN, str(home)], env=environment, capture_output=True, text=True, timeout=250
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("42")
    assert "said" in result.stdout + result.stderr
    assert "whispered" not in result.stdout + result.stderr
    with sqlite3.connect(home / "prefect.db") as database:
        assert database.execute("select count(*) from flow_run where state_type = 'COMPLETED'").fetchone() == (1,)
        assert database.execute("select count(*) from log where message = 'whispered'").fetchone() == (1,)


def test_a_server_that_is_named_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    with embedded_prefect(tmp_path / "home") as address:
        assert address == "http://prefect.example/api"
    assert not (tmp_path / "home").exists()
