"""`make soak` in short: two retrainings, a fault each, by the command itself."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.service_faults import Fault
from tests.faults.soak import Round, Soak, creeping, deal, report

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


def test_each_kind_comes_as_often_as_each_other() -> None:
    kinds = [Fault(name, str) for name in ("a", "b", "c")]
    hand = [fault.kind for fault in deal(kinds, 8, random.Random("x"))]
    assert sorted(Counter(hand).values()) == [2, 3, 3]
    assert hand == [fault.kind for fault in deal(kinds, 8, random.Random("x"))]


def test_a_fault_that_comes_too_late_is_tried_again_earlier(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def retrain(soak: Soak, number: int, fault: Fault, at: float, lasts: float) -> Round:
        tried.append(at)
        return Round(number, fault.kind, "hit" if at < lasts else "")

    monkeypatch.setattr(Soak, "retrain", retrain)
    soak, fault = Soak.__new__(Soak), Fault("worker killed", str)
    assert [one.hit for one in soak.until_hit(3, fault, 40.0, 25.0)] == ["", "hit"] and tried == [40.0, 20.0]
    never = soak.until_hit(4, fault, 400.0, 1.0)
    assert len(never) == 3 and never[-1].wrong and not never[0].wrong


def test_what_creeps_is_said_and_what_jumps_about_is_not() -> None:
    def rounds(megabytes: list[float]) -> list[Round]:
        return [Round(n, "none", memory={"worker": held, "watcher": 5.0}) for n, held in enumerate(megabytes)]

    assert creeping(rounds([100.0 + 20 * n for n in range(12)])) == [
        "memory grows by 20.0 MB a retraining, and 8 are the most"
    ]
    assert creeping(rounds([100.0 + 20 * (n % 2) for n in range(12)])) == []
    assert creeping(rounds([100.0, 900.0])) == []  # a slope of two says nothing
    bounded = [Round(n, "none", memory={"ray-head": 900.0 + 50 * n, "prometheus": 70.0 + 9 * n}) for n in range(12)]
    assert creeping(bounded) == []
    bounded[-1].memory["ray-head"] = 2400.0
    assert creeping(bounded) == ["the Ray head holds 2400 MB, and is to be started anew at 1300"]


def test_the_page_says_what_went_wrong() -> None:
    good = Round(0, "none", seconds=50, release="1", seen=24, kept=23, runs=["Completed"], memory={"worker": 100.0})
    bad = Round(1, "store down", "refused", 3, 9, 70, "2", 30, 28, ["Failed", "Completed"], {"worker": 1}, wrong=["x"])
    page = report([good, bad], "a machine", "abc", "7", [])
    assert "**1 went\nwrong**" in page
    assert "| 1 | store down | 3 (9) | 70 | 2 | 30 (28) | 0 | 0 | refused; runs: 1 Failed, 1 Completed; " in page
    assert "worker started again; **x** |" in page and "| worker | 100.0 | 100.0 | 0.0 | -100.00 |" in page
