"""A machine is announced to be taken away, as cloud providers do with cheap ones: the training saves, and goes on on
what is left. `make test-faults` runs it, on Ray nodes of this machine that Ray itself drains."""

from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from flows.checkpoints import folder_of
from tests.faults.ray_cluster import RayCluster
from tests.faults.training_runs import Training

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

EVERY = 50  # steps between checkpoints that nobody announced
CHANGES = {"train__steps": "300", "train__checkpoint_every": str(EVERY), "train__keep_last": "100"}
_DEADLINE_SECONDS = 15
Trainings = Callable[..., Training]


@pytest.fixture
def patient(trainings: Trainings) -> dict[str, Any]:
    """What comes out when nothing happens."""
    return trainings("patient", **CHANGES).start().result()


@pytest.fixture
def machines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayCluster]:
    """A head on which no worker has room, and nodes with room for one each."""
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    with RayCluster(1 + request.param, head_cpus=0) as cluster:
        yield cluster


def _steps(training: Training) -> set[int]:
    """The steps whose checkpoints are there."""
    keys = training.run.store.list(folder_of(training.run_id))
    return {int(key.split("/")[3].removeprefix("step-")) for key in keys if key.endswith("/complete.json")}


def _preempted(machines: RayCluster, training: Training, which: int) -> Training:
    """A training in which the machine of one of its workers is announced, and is gone."""
    training.start().until_saved(EVERY)
    worker = training.workers_at(EVERY)[which]
    machines.announce(worker.node, _DEADLINE_SECONDS)
    # It is saved at once, not only when it is due.
    training.until(lambda: any(step % EVERY for step in _steps(training)), "saved out of turn")
    training.until(lambda: not psutil.pid_exists(worker.pid), "rid of the worker")
    return training


@pytest.mark.parametrize("machines", [3], indirect=True)
@pytest.mark.parametrize("which", [0, 1])
def test_a_preempted_machine_costs_no_bit(
    machines: RayCluster, which: int, trainings: Trainings, patient: dict[str, Any]
) -> None:
    """Of either worker: one of them writes the checkpoints. The other one's machine and a third are left."""
    training = trainings(f"spare-{which}", **CHANGES, ray__address=machines.address)
    assert _preempted(machines, training, which).result() == patient


@pytest.mark.parametrize("machines", [0], indirect=True)
def test_a_pod_that_is_told_to_end_announces_itself(machines: RayCluster, trainings: Trainings) -> None:
    """As `infra/kubernetes` relies on it: nobody but the pod's first process tells Ray."""
    pods = [machines.add_pod(_DEADLINE_SECONDS) for _ in range(2)]
    changes = CHANGES | {"train__checkpoint_every": CHANGES["train__steps"]}  # none is due before the end
    training = trainings("pods", **changes, train__min_workers="1", ray__address=machines.address).start()
    assert training.workers_at(20)
    pods[0].terminate()
    training.until(lambda: _steps(training), "saved")
    assert min(_steps(training)) < int(CHANGES["train__steps"])
    pods[0].wait(timeout=120)


@pytest.mark.parametrize("machines", [2], indirect=True)
def test_too_few_machines_are_waited_for_aloud(
    machines: RayCluster, trainings: Trainings, patient: dict[str, Any]
) -> None:
    training = trainings("waits", **CHANGES, ray__address=machines.address)
    _preempted(machines, training, 0)
    training.until(lambda: "the cluster has room for 1 of 2 workers" in training.said, "said what it waits for")
    machines.add_node()
    assert training.result() == patient


@pytest.mark.parametrize("machines", [2], indirect=True)
def test_fewer_workers_go_on(machines: RayCluster, trainings: Trainings, patient: dict[str, Any]) -> None:
    """The sums are in another order then: not the same bits, but the same training."""
    training = trainings("fewer", **CHANGES, train__min_workers="1", ray__address=machines.address)
    found = _preempted(machines, training, 0).result()
    assert found["curve"][-1]["step"] == patient["curve"][-1]["step"] == 300
    assert found["curve"][-1]["loss"] == pytest.approx(patient["curve"][-1]["loss"], rel=1e-2)
