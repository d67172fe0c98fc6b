"""A sharded training that is disturbed goes on with other workers, with or without parts, to the same end."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.ray_cluster import RayCluster
from tests.faults.training_runs import Training

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

CHANGES = {
    "train__steps": "40",
    "train__batch_size": "7",
    "train__checkpoint_every": "5",
    "train__precision": "fp64",  # what does not depend on the workers is then seen to eight digits
    "ray__num_cpus": "4",
}
Trainings = Callable[..., Training]


@pytest.fixture
def alone(trainings: Trainings) -> dict[str, Any]:
    """One worker with everything, and nothing happens."""
    return trainings("alone", **CHANGES, train__workers="1").start().result()


def _require_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert [row["step"] for row in found["curve"]] == [row["step"] for row in expected["curve"]]
    for row, other in zip(found["curve"], expected["curve"], strict=True):
        assert row == pytest.approx(other, rel=1e-8)


def test_another_number_of_workers_and_the_other_sharding_go_on(trainings: Trainings, alone: dict[str, Any]) -> None:
    """Three with parts are killed, then two with everything, then two with parts come to the end."""
    for workers, sharding, step in ((3, "fsdp", 10), (2, "none", 20)):
        training = trainings("passed-on", **CHANGES, train__workers=str(workers), train__sharding=sharding)
        training.start().until_saved(step)
        training.kill_driver()
    last = trainings("passed-on", **CHANGES, train__workers="2", train__sharding="fsdp")
    _require_same(last.start().result(), alone)


def test_a_lost_machine_leaves_one_worker_with_everything(trainings: Trainings, alone: dict[str, Any]) -> None:
    with RayCluster(2) as cluster:
        place = {"train__workers": "2", "train__min_workers": "1", "ray__address": cluster.address}
        training = trainings("lost", **CHANGES, train__sharding="fsdp", **place)
        training.start().until_saved(10)
        (other,) = [worker.node for worker in training.workers_at(10).values() if worker.node in cluster]
        cluster.kill_node(other)
        _require_same(training.result(), alone)
