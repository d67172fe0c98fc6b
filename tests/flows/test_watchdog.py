"""Who hangs is ended, who works is not."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def _run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_a_hanging_worker_is_ended_and_says_where_it_was() -> None:
    ended = _run(
        "import time\nfrom flows.watchdog import Watchdog\n"
        "def lost_in_a_collective(): time.sleep(3600)\n"
        "with Watchdog(0.4): lost_in_a_collective()"
    )
    assert ended.returncode == 70
    assert "No step for 0 seconds" in ended.stderr or "train.hang_seconds" in ended.stderr
    assert "lost_in_a_collective" in ended.stderr


def test_one_that_steps_and_one_that_is_done_are_left_alone() -> None:
    ended = _run(
        "import time\nfrom flows.watchdog import Watchdog\n"
        "with Watchdog(1.5) as watchdog:\n"
        "    for _ in range(8): time.sleep(0.3); watchdog.alive()\n"
        "time.sleep(2)\nprint('fine')"
    )
    assert (ended.returncode, ended.stdout) == (0, "fine\n")
