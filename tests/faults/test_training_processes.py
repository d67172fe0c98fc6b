"""A training whose processes die, stop or crawl ends with the weights of one left in peace, bit for bit, and has seen
every sample of every epoch exactly once: real processes, real signals, at moments that are drawn anew each time.

`make test-faults` runs it; `FAULTS_SEED` repeats a run's moments.
"""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.checkpoints import latest_step
from tests.faults.ray_cluster import RayCluster
from tests.faults.training_runs import STEPS, Training

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
Trainings = Callable[..., Training]


def test_nothing_happens(calm: dict[str, Any]) -> None:
    assert calm["curve"][-1]["step"] == STEPS and not calm["damaged"]


def test_a_killed_driver_is_started_again_by_the_same_command(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random
) -> None:
    training = trainings("driver").start()
    training.workers_at(chance.randrange(STEPS))
    training.kill_driver()
    assert training.start().result() == calm


def test_workers_that_are_killed_twice(trainings: Trainings, calm: dict[str, Any], chance: random.Random) -> None:
    training = trainings("workers").start()
    for step in sorted(chance.sample(range(STEPS), 2)):
        worker = training.workers_at(step)[chance.randrange(2)]
        time.sleep(chance.uniform(0, 0.1))  # anywhere in a step
        training.kill_worker(worker)
    assert training.result() == calm


def test_more_deaths_than_ray_is_to_mend(trainings: Trainings, calm: dict[str, Any], chance: random.Random) -> None:
    """While checkpoints come between, the driver goes on by itself; where none comes it says what happened."""
    training = trainings("often").start(environment={"MOST_FAILURES": "0"})
    for times in (1, 2):
        step = 4 + latest_step(training.run.store, training.run_id)
        training.until_saved(step)
        training.kill_worker(training.workers_at(chance.randrange(step, step + 4))[chance.randrange(2)])
        training.until(lambda times=times: training.said.count("It goes on by itself") == times, "it went on")
    assert training.result() == calm
    hopeless = trainings("hopeless", train__checkpoint_every=str(STEPS)).start(environment={"MOST_FAILURES": "0"})
    hopeless.kill_worker(hopeless.workers_at(0)[chance.randrange(2)])
    refused = hopeless.printed()["refused"]
    assert "workers failed too often, at last with: " in refused and "Traceback" not in refused


def test_a_checkpoint_that_is_cut_off_in_every_file(trainings: Trainings, calm: dict[str, Any]) -> None:
    """The process that writes it dies once in the middle of each of its files, the list included."""
    training = trainings("upload").start(dying="put")
    found = training.result()
    deaths = sorted(path.name for path in (training.settings.workspace / "deaths").iterdir())
    assert deaths == sorted(
        ["history.json", "adapter.safetensors", "adapter_config.json", "average.safetensors", "complete.json"]
        + ["optimizer.safetensors", "state.json"]
    )
    assert found == calm
    assert not list(Path(training.settings.store_root).rglob(".partial-*")), "the halves are litter"


def test_old_checkpoints_whose_removal_is_cut_off(trainings: Trainings, calm: dict[str, Any]) -> None:
    """Once after the first one's list, and once between the files of what is then a half."""
    training = trainings("removal").start(dying="delete")
    assert training.result() == calm
    assert sorted(path.name for path in (training.settings.workspace / "deaths").iterdir()) == [
        "adapter.safetensors",
        "complete.json",
    ]


def test_a_slow_worker(trainings: Trainings, calm: dict[str, Any], chance: random.Random) -> None:
    training = trainings("slow").start()
    slow = psutil.Process(training.workers_at(chance.randrange(STEPS // 2))[chance.randrange(2)].pid)
    for _ in range(6):
        slow.suspend()
        time.sleep(1.0)
        slow.resume()
        time.sleep(0.1)
    assert training.result() == calm


def test_a_worker_that_hangs_is_noticed_and_the_run_goes_on(
    trainings: Trainings, calm: dict[str, Any], chance: random.Random
) -> None:
    training = trainings("hangs", train__hang_seconds="20").start()
    hung = psutil.Process(training.workers_at(chance.randrange(STEPS))[chance.randrange(2)].pid)
    hung.suspend()  # for ever: its peer waits for it
    assert training.result() == calm
    assert not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("nodes", [2, 3])
def test_a_lost_node(nodes: int, trainings: Trainings, calm: dict[str, Any], chance: random.Random) -> None:
    """All of the node of a worker is killed: with three nodes its worker starts on the one that is left, with two it
    waits for a new one."""
    with RayCluster(nodes) as cluster:
        training = trainings(f"node-{nodes}", ray__address=cluster.address).start()
        workers = training.workers_at(chance.randrange(STEPS)).values()
        lost = next(worker for worker in workers if worker.node in cluster)
        cluster.kill_node(lost.node)
        if nodes == 2:
            cluster.add_node()
        assert training.result() == calm and not psutil.pid_exists(lost.pid)
