"""A training whose worker was killed says so itself: two starts, the steps between them, and every sample's turns."""

from pathlib import Path

import pytest

from flows.train import finished_training
from flows.training_continuity import continuity
from flows.training_history import read_attempts
from tests.faults.training_runs import Training, prepare

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
    with Training(prepare(tmp_path, "here", CHANGES)) as training:
        run, run_id = training.start().run, training.run_id
        training.until_saved(25)
        training.kill_worker(training.workers_at(25)[0])
        training.result()
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
