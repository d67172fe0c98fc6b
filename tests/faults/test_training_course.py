"""A training whose worker was killed says so itself: two starts, the steps between them, and every sample's turns."""

import time
from pathlib import Path

import psutil
import pytest

from flows.checkpoints import latest_step
from flows.run import Run
from flows.train import finished_training, plan_training
from flows.training_continuity import continuity
from flows.training_history import read_attempts
from tests.faults.training_driver import prepare, result_of, start

CHANGES = {
    "train.steps": "80",
    "train.batch_size": "6",
    "train.checkpoint_every": "25",
    "train.workers": "2",
    "train.warmup_steps": "0",
    "ray.num_cpus": "3",
    "ray.object_store_mb": "80",
}


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_worker_that_was_killed_stands_in_the_history(tmp_path: Path) -> None:
    settings = prepare(tmp_path, "here", CHANGES)
    run, driver = Run(settings), start(settings)
    run_id = plan_training(run, from_scratch=True)["run_id"]
    deadline = time.monotonic() + 240
    while not latest_step(run.store, run_id):
        assert driver.poll() is None and time.monotonic() < deadline, (settings.workspace / "driver.log").read_text()
        time.sleep(0.05)
    children = psutil.Process(driver.pid).children(recursive=True)
    next(one for one in children if one.is_running() and "RayTrainWorker" in " ".join(one.cmdline())).kill()
    assert "adapter" in result_of(driver, settings)
    (attempt,) = read_attempts(run.store, run_id)
    first, second = attempt.starts
    assert (first.step, first.heard) == (0, 0) and second.step in (25, 50, 75) and attempt.how == "finished"
    finished = finished_training(run, run_id)
    assert [one["step"] for one in finished["starts"]] == [0, second.step]
    told = continuity(run.store, run_id, finished)
    assert told is not None and told.whole
    assert [row["ended"].partition(" 2")[0] for row in told.attempts] == [
        "a worker or its machine was lost",
        "finished",
    ]
