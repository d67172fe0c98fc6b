"""`make soak` in short: two retrainings, a fault each, by the command itself."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.xdist_group("service"), pytest.mark.timeout(1800)]  # three minutes


@pytest.mark.faults
def test_two_retrainings_with_a_fault_each(faults_seed: str, tmp_path: Path) -> None:
    kinds = "a run's process killed,Prefect server killed,store down,worker killed"
    command = [sys.executable, "-m", "tests.faults.soak", "--retrains", "2", "--seed", faults_seed, "--kinds", kinds]
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-8000:]
    (page,) = tmp_path.glob("*-soak.md")
    text = page.read_text("utf-8")
    assert "**Nothing went\nwrong**" in text and f"--seed {faults_seed}" in text
    assert len([line for line in text.splitlines() if line.startswith(("| 0 | none |", "| 1 | ", "| 2 | "))]) == 3
