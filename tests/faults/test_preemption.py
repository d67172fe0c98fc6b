"""A machine is announced to be taken away, as cloud providers do with cheap ones: the training saves, and goes on on
what is left. `make test-faults` runs it, on Ray nodes of this machine that Ray itself drains."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.checkpoints import folder_of
from flows.run import Run
from flows.train import plan_training
from infra.settings import Settings
from tests.faults.training_driver import prepare, result_of, start

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

EVERY = 50  # steps between checkpoints that nobody announced
CHANGES = {
    "train.steps": "300",
    "train.batch_size": "6",
    "train.checkpoint_every": str(EVERY),
    "train.keep_last": "100",
    "train.workers": "2",
    "train.warmup_steps": "0",
    "ray.num_cpus": "3",
    "ray.object_store_mb": "80",
}
_DEADLINE_SECONDS = 15


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preemption")


@pytest.fixture(scope="module")
def calm(root: Path) -> dict[str, Any]:
    """What comes out when nothing happens."""
    settings = prepare(root, "calm", CHANGES)
    return result_of(start(settings), settings)


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> Iterator["Machines"]:
    machines = Machines(request.param)
    try:
        yield machines
    finally:
        machines.stop()


class Machines:
    """A Ray cluster: a head on which no worker has room, and nodes with room for one each."""

    def __init__(self, nodes: int) -> None:
        from ray.cluster_utils import Cluster

        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("RAY_worker_niceness", "0")
        self.patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        self.patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 10**6}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(nodes)]
        self.cluster.wait_for_nodes()

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 * 10**6)

    def stop(self) -> None:
        self.cluster.shutdown()
        self.patch.undo()

    def worker_of(self, node: Any) -> psutil.Process | None:
        """The training's worker on a node."""
        for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    return process
            except psutil.Error:
                continue
        return None

    def announce(self, node: Any) -> None:
        """That it will be taken away."""
        words = ["drain-node", "--address", self.cluster.address, "--node-id", node.node_id]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "wanted elsewhere"]
        words += ["--deadline-remaining-seconds", str(_DEADLINE_SECONDS)]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True, capture_output=True)


def _steps(settings: Settings, run_id: str) -> set[int]:
    """The steps whose checkpoints are there."""
    keys = Run(settings).store.list(folder_of(run_id))
    return {int(key.split("/")[3].removeprefix("step-")) for key in keys if key.endswith("/complete.json")}


def _until(found: Callable[[], Any], driver: "subprocess.Popen[str]", settings: Settings) -> Any:
    deadline = time.monotonic() + 300
    while not (answer := found()):
        log = (settings.workspace / "driver.log").read_text()[-3000:]
        assert driver.poll() is None, f"the training ended before: {log}"
        assert time.monotonic() < deadline, log
        time.sleep(0.05)
    return answer


def _preempted(machines: Machines, settings: Settings, which: int) -> "subprocess.Popen[str]":
    """A training in which the machine of one of its workers is announced, and is gone; the driver."""
    driver = start(settings)
    run_id = plan_training(Run(settings), from_scratch=True)["run_id"]
    _until(lambda: _steps(settings, run_id), driver, settings)
    node = [node for node in machines.nodes if machines.worker_of(node) is not None][which]
    worker = machines.worker_of(node)
    assert worker is not None
    machines.announce(node)
    # It is saved at once, not only when it is due.
    _until(lambda: any(step % EVERY for step in _steps(settings, run_id)), driver, settings)
    _until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, driver, settings)
    return driver


@pytest.mark.parametrize("machines", [3], indirect=True)
@pytest.mark.parametrize("which", [0, 1])
def test_a_preempted_machine_costs_no_bit(machines: Machines, which: int, root: Path, calm: dict[str, Any]) -> None:
    """Of either worker: one of them writes the checkpoints. The other one's machine and a third are left."""
    settings = prepare(root, f"spare-{which}", {**CHANGES, "ray.address": machines.cluster.address})
    driver = _preempted(machines, settings, which)
    assert result_of(driver, settings)["adapter"] == calm["adapter"]


@pytest.mark.parametrize("machines", [2], indirect=True)
def test_too_few_machines_are_waited_for_aloud(machines: Machines, root: Path, calm: dict[str, Any]) -> None:
    settings = prepare(root, "waits", {**CHANGES, "ray.address": machines.cluster.address})
    driver = _preempted(machines, settings, 0)
    log = settings.workspace / "driver.log"
    _until(lambda: "the cluster has room for 1 of 2 workers" in " ".join(log.read_text().split()), driver, settings)
    machines.add()
    assert result_of(driver, settings)["adapter"] == calm["adapter"]


@pytest.mark.parametrize("machines", [2], indirect=True)
def test_fewer_workers_go_on(machines: Machines, root: Path, calm: dict[str, Any]) -> None:
    """The sums are in another order then: not the same bits, but the same training."""
    fewer = {**CHANGES, "train.min_workers": "1", "ray.address": machines.cluster.address}
    settings = prepare(root, "fewer", fewer)
    found = result_of(_preempted(machines, settings, 0), settings)
    assert found["curve"][-1]["step"] == calm["curve"][-1]["step"] == 300
    assert found["curve"][-1]["loss"] == pytest.approx(calm["curve"][-1]["loss"], rel=1e-2)
