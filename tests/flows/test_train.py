"""The training's own thread; the rest of the driver is tested by the journey."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.train import _in_background

REPOSITORY = Path(__file__).parents[2]


def test_results_and_errors_come_back() -> None:
    assert _in_background(lambda: 7).result(timeout=60) == 7

    def fails() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        _in_background(fails).result(timeout=60)


def test_nobody_waits_for_a_training_that_was_given_up() -> None:
    code = "import time; from flows.train import _in_background; _in_background(lambda: time.sleep(3600))"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=240)
