"""Threads that are left behind, and waits that Ctrl-C breaks off, in real processes with real signals."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.background import in_background, wait_for

REPOSITORY = Path(__file__).parents[2]


def test_results_and_errors_come_back() -> None:
    assert in_background(lambda: 7).result(timeout=60) == 7

    def fails() -> None:
        raise KeyError("x")

    failed = in_background(fails)
    wait_for([failed, in_background(lambda: 7)])
    with pytest.raises(KeyError, match="x"):
        failed.result(timeout=0)


def test_nobody_waits_for_what_was_given_up() -> None:
    code = "import time; from flows.background import in_background; in_background(lambda: time.sleep(3600))"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=240)


def test_ctrl_c_is_heard_though_polars_was_imported() -> None:
    code = (
        "import time, polars; from flows.background import in_background, wait_for\n"
        "futures = [in_background(lambda: time.sleep(3600))]\n"
        "print('waits', flush=True)\n"
        "wait_for(futures)"
    )
    # An interpreter that a shell started in the background would have no handler of its own.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{code}"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in said
