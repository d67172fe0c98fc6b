"""A training that is disturbed ends with the weights of one that is not, bit for bit: real processes, real signals.

`make test-faults` runs it. Of it `make test` has the journey, whose driver is killed while it trains.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.checkpoints import latest_step
from flows.run import Run
from flows.train import plan_training
from infra.settings import Settings
from tests.faults.training_driver import prepare, result_of, start

CHANGES = {
    "train.steps": "60",
    "train.batch_size": "6",
    "train.checkpoint_every": "5",
    "train.workers": "2",
    "train.keep_last": "2",
    "train.warmup_steps": "0",
    "ray.num_cpus": "3",
    "ray.object_store_mb": "80",
}
faults = pytest.mark.faults


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def calm(root: Path) -> dict[str, Any]:
    """What comes out when nothing happens."""
    settings = prepare(root, "calm", CHANGES)
    return result_of(start(settings), settings)


def _workers(driver: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The training's worker processes that belong to a driver's own Ray."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _at_step(settings: Settings, driver: "subprocess.Popen[str]", step: int) -> None:
    """Wait for a checkpoint of this step or a later one."""
    run = Run(settings)
    run_id = plan_training(run, from_scratch=True)["run_id"]
    deadline = time.monotonic() + 240
    while latest_step(run.store, run_id) < step:
        log = settings.workspace / "driver.log"
        assert driver.poll() is None, f"the training ended before step {step}: {log.read_text()[-2000:]}"
        assert time.monotonic() < deadline, f"no step {step}: {log.read_text()[-2000:]}"
        time.sleep(0.05)


@faults
@pytest.mark.timeout(900)
def test_a_killed_driver_is_started_again_by_the_same_command(root: Path, calm: dict[str, Any]) -> None:
    settings = prepare(root, "driver", CHANGES)
    driver = start(settings)
    family = psutil.Process(driver.pid).children
    _at_step(settings, driver, 15)
    killed = family(recursive=True)
    os.killpg(driver.pid, signal.SIGKILL)
    for process in killed:  # on a machine of its own all of them die with it
        if process.is_running():
            process.kill()
    driver.wait()
    assert result_of(start(settings), settings) == calm


@faults
@pytest.mark.timeout(900)
def test_workers_that_are_killed_twice(root: Path, calm: dict[str, Any]) -> None:
    settings = prepare(root, "workers", CHANGES)
    driver = start(settings)
    for step, which in ((10, 0), (35, 1)):
        _at_step(settings, driver, step)
        workers = sorted(_workers(driver), key=lambda process: process.pid)
        assert len(workers) >= 2
        workers[which].kill()
    assert result_of(driver, settings) == calm


@faults
@pytest.mark.timeout(900)
def test_a_checkpoint_that_is_cut_off_at_every_file(root: Path, calm: dict[str, Any]) -> None:
    """The process that writes it dies once at each of its files, the list included."""
    settings = prepare(root, "upload", CHANGES)
    driver = start(settings, dying=True)
    found = result_of(driver, settings)
    deaths = sorted(path.name for path in (settings.workspace / "deaths").iterdir())
    assert deaths == sorted(
        ["history.json", "adapter.safetensors", "adapter_config.json", "average.safetensors", "complete.json"]
        + ["optimizer.safetensors", "state.json"]
    )
    assert found == calm


@faults
@pytest.mark.timeout(900)
def test_a_slow_worker(root: Path, calm: dict[str, Any]) -> None:
    settings = prepare(root, "slow", CHANGES)
    driver = start(settings)
    _at_step(settings, driver, 10)
    worker = _workers(driver)[-1]
    for _ in range(6):
        worker.suspend()
        time.sleep(1.0)
        worker.resume()
        time.sleep(0.2)
    assert result_of(driver, settings) == calm


@faults
@pytest.mark.timeout(900)
def test_a_worker_that_hangs_is_noticed_and_the_run_goes_on(root: Path, calm: dict[str, Any]) -> None:
    settings = prepare(root, "hangs", {**CHANGES, "train.hang_seconds": "30"})
    driver = start(settings)
    _at_step(settings, driver, 10)
    worker = _workers(driver)[-1]
    worker.suspend()  # for ever: its peer waits for it
    found = result_of(driver, settings)
    assert found == calm
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


@faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("nodes", [2, 3])
def test_a_lost_node(nodes: int, root: Path, calm: dict[str, Any]) -> None:
    """The node of one of the workers is killed; its worker starts on one that is left."""
    with _cluster(nodes) as (address, kill_a_node):
        settings = prepare(root, f"node-{nodes}", {**CHANGES, "ray.address": address})
        driver = start(settings)
        _at_step(settings, driver, 10)
        kill_a_node()
        assert result_of(driver, settings) == calm


@faults
@pytest.mark.timeout(900)
def test_an_object_store_that_is_away_for_half_a_minute(root: Path, calm: dict[str, Any], s3_address: str) -> None:
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=s3_address).create_bucket(Bucket="faults")
        with _relay(s3_address) as (address, away):
            store = {"storage.root": "s3://faults/data", "storage.endpoint_url": address}
            settings = prepare(root, "store", {**CHANGES, **store})
            driver = start(settings)
            _at_step(settings, driver, 10)
            away(30.0)
            assert result_of(driver, settings) == calm


class _cluster:
    """A Ray cluster on this machine whose last node can be killed."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes

    def __enter__(self) -> tuple[str, Callable[[], None]]:
        from ray.cluster_utils import Cluster

        self.patch = pytest.MonkeyPatch()
        self.patch.setenv("RAY_worker_niceness", "0")
        self.patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        memory = {"object_store_memory": 80 * 10**6}
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False, **memory}
        )
        others = [self.cluster.add_node(num_cpus=1, **memory) for _ in range(self.nodes - 1)]
        self.cluster.wait_for_nodes()
        return self.cluster.address, lambda: self.cluster.remove_node(others[-1], allow_graceful=False)

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()
        self.patch.undo()


class _relay:
    """The way to the object store, which can be taken away for a while."""

    def __init__(self, address: str) -> None:
        self.target = address.rpartition(":")[2]

    def __enter__(self) -> tuple[str, Callable[[float], None]]:
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._start()
        return f"http://127.0.0.1:{self.port}", self._away

    def _start(self) -> None:
        relay = Path(__file__).with_name("relay.py")
        self.process = subprocess.Popen([sys.executable, str(relay), str(self.port), self.target])
        time.sleep(1.0)

    def _away(self, seconds: float) -> None:
        self.process.kill()
        self.process.wait()
        time.sleep(seconds)
        self._start()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
