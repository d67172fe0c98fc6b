"""One run at a time in a workspace, and none after a killed one stands in the way."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.session import alone_in
from infra.errors import UserError

REPOSITORY = Path(__file__).parents[2]
# The child of a child outlives the kill, as an orphaned worker may.
HOLD = """
import os, sys, time
from pathlib import Path
from flows.session import alone_in
with alone_in(Path(sys.argv[1])):
    orphan = os.fork()
    if orphan:
        print(orphan, flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "new" / "workspace"
    command = [sys.executable, "-c", HOLD, str(workspace)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        try:
            with monkeypatch.context() as patch, pytest.raises(UserError, match="Another run is at work"):
                patch.setattr("flows.session._DYING_SECONDS", 0.0)
                with alone_in(workspace):
                    raise AssertionError("two at once")
            process.send_signal(signal.SIGKILL)
            process.wait()
            with alone_in(workspace):
                pass
        finally:
            process.kill()
            subprocess.run(["kill", "-9", str(orphan)], check=False)
