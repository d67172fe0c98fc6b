"""A sharded training that is disturbed goes on with other workers, with or without parts, to the same end."""

import os
import signal
import subprocess
import time
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
    "train.steps": "40",
    "train.batch_size": "7",
    "train.checkpoint_every": "5",
    "train.warmup_steps": "0",
    "train.precision": "fp64",  # what does not depend on the workers is then seen to eight digits
    "ray.num_cpus": "4",
    "ray.object_store_mb": "80",
}
PARTS = {**CHANGES, "train.sharding": "fsdp"}
faults = pytest.mark.faults


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def calm(root: Path) -> dict[str, Any]:
    """One worker with everything, and nothing happens."""
    settings = prepare(root, "calm", {**CHANGES, "train.workers": "1"})
    return result_of(start(settings), settings)


def _at_step(settings: Settings, driver: "subprocess.Popen[str]", step: int) -> None:
    run = Run(settings)
    run_id, deadline = plan_training(run, from_scratch=True)["run_id"], time.monotonic() + 240
    while latest_step(run.store, run_id) < step:
        log = settings.workspace / "driver.log"
        assert driver.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.05)


def _require_same(found: dict[str, Any], calm: dict[str, Any]) -> None:
    assert [row["step"] for row in found["curve"]] == [row["step"] for row in calm["curve"]]
    for row, expected in zip(found["curve"], calm["curve"], strict=True):
        assert row == pytest.approx(expected, rel=1e-8)


@faults
@pytest.mark.timeout(900)
def test_another_number_of_workers_and_the_other_sharding_go_on(root: Path, calm: dict[str, Any]) -> None:
    """Three with parts are killed, then two with everything, then two with parts come to the end."""
    for workers, sharding, step in ((3, "fsdp", 10), (2, "none", 20), (2, "fsdp", 0)):
        changes = {"train.workers": str(workers), "train.sharding": sharding}
        settings = prepare(root, "passed-on", {**CHANGES, **changes})
        driver = start(settings)
        if not step:
            _require_same(result_of(driver, settings), calm)
            return
        _at_step(settings, driver, step)
        family = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGKILL)
        for process in family:  # on a machine of its own all of them die with it
            if process.is_running():
                process.kill()
        driver.wait()


@faults
@pytest.mark.timeout(900)
def test_a_lost_machine_leaves_one_worker_with_everything(root: Path, calm: dict[str, Any]) -> None:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 10**6}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            second = cluster.add_node(**node)
            cluster.wait_for_nodes()
            place = {"train.workers": "2", "train.min_workers": "1", "ray.address": cluster.address}
            settings = prepare(root, "lost", {**PARTS, **place})
            driver = start(settings)
            _at_step(settings, driver, 10)
            cluster.remove_node(second, allow_graceful=False)
            _require_same(result_of(driver, settings), calm)
        finally:
            cluster.shutdown()
