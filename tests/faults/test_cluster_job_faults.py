"""A training as a job on a cluster, whose driver, connection, process or cluster is lost, or that is stopped.

However it is disturbed, there is one job at a time, and the weights are those of a training that nothing happened to,
bit for bit. `make test-faults` runs it: real processes, real signals, a real Prefect server.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flows import job_records
from flows.checkpoints import latest_step
from flows.job_records import Attempt
from flows.run import Run
from flows.train import plan_training
from infra.ray_jobs import JobServer, JobState
from tests.faults.lost_connection import Relay
from tests.faults.training_driver import outcome
from tests.faults.training_runs import prepare
from tests.ray_head import RayHead
from tests.tiny_world import tiny_changes, write_people, write_photos, write_world

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
CHANGES = {
    "train.steps": "120",
    "train.batch_size": "6",
    "train.checkpoint_every": "5",
    "train.workers": "2",
    "train.warmup_steps": "0",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cluster")
    write_people(root / "celeba")
    write_photos(root / "ffhq", 2)
    return root


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with RayHead(tmp_path_factory.mktemp("head") / "head.log") as head, head.letting_in():
        yield head


class Training:
    """`moa train` in a workspace of its own, and its jobs."""

    def __init__(self, root: Path, name: str, address: str, changes: Mapping[str, str] | None = None) -> None:
        self.changes = {**CHANGES, "ray.address": address, **(changes or {})}
        self.settings = prepare(root, name, self.changes)
        self.root, self.run = root, Run(self.settings)
        self.run_id = str(plan_training(self.run, from_scratch=True)["run_id"])
        self.name = job_records.job_name(self.settings, "train", self.run_id)
        self.log = self.settings.workspace / "driver.log"

    def start(self, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-m", "flows.cli", "train", "--from-scratch"]
        words += ["--workspace", str(self.settings.workspace)]
        changes = {**tiny_changes(self.root), **self.changes}
        words += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        self.settings.workspace.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                words, stdout=log, stderr=log, cwd=REPOSITORY, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | dict(environment or {}),
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def at_step(self, step: int, driver: "subprocess.Popen[bytes] | None" = None) -> None:
        _until(lambda: latest_step(self.run.store, self.run_id) >= step or self.ended, lambda: self.said, driver)
        assert not self.ended, f"it ended before step {step} was seen"

    @property
    def ended(self) -> bool:
        return self.run.store.exists(f"runs/{self.run_id}/finished.json")

    @property
    def attempts(self) -> int:
        last = job_records.latest(self.run.store, self.name)
        return last.number if last else 0

    def state(self, number: int = 1) -> JobState | None:
        return JobServer(self.settings.ray.address).state(Attempt(self.name, number).job_id)

    def until_stopped(self) -> None:
        """Wait until the cluster says so of the first job."""
        _until(lambda: (state := self.state()) is not None and state.status == "STOPPED", lambda: self.said)

    def goes_well(self, driver: "subprocess.Popen[bytes]") -> dict[str, Any]:
        """Wait for the driver's good end: `outcome`."""
        assert driver.wait(timeout=600) == 0, self.said[-4000:]
        return outcome(self.run, self.run_id)


@pytest.fixture(scope="module")
def calm(root: Path, head: RayHead) -> dict[str, Any]:
    """What comes out when nothing happens."""
    training = Training(root, "calm", head.address)
    found = training.goes_well(training.start())
    assert training.attempts == 1 and "120/120" in training.said  # the progress came here
    return found


def test_a_lost_connection_loses_nothing(root: Path, head: RayHead, calm: dict[str, Any]) -> None:
    with Relay(head.ports["dashboard"]) as relay:
        training = Training(root, "connection", relay.address)
        driver = training.start()
        training.at_step(15, driver)
        relay.away(15.0)
        assert training.goes_well(driver) == calm
    assert "does not answer" in training.said and training.attempts == 1


def test_a_connection_that_stays_away_until_after_the_end(root: Path, head: RayHead, calm: dict[str, Any]) -> None:
    """The outcome is taken from the store."""
    with Relay(head.ports["dashboard"]) as relay:
        training = Training(root, "gone", relay.address)
        driver = training.start()
        training.at_step(15, driver)
        relay.stop()
        assert training.goes_well(driver) == calm
        assert "answers again" not in training.said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_finds_its_job_again(
    number: signal.Signals, root: Path, head: RayHead, calm: dict[str, Any]
) -> None:
    training = Training(root, f"driver-{number.name}", head.address)
    driver = training.start()
    training.at_step(10, driver)
    with head.holding(["RayTrainWorker"]):
        if number is signal.SIGKILL:
            os.killpg(driver.pid, number)
        else:
            driver.send_signal(number)
        driver.wait(timeout=120)
        _end_group(driver)
        state = training.state()
        assert state is not None and state.status == "RUNNING"
        again = training.start()
        _until(lambda: f"found the job {training.name}-0001" in training.said, lambda: training.said, again)
    assert training.goes_well(again) == calm
    assert training.attempts == 1


def test_a_driver_that_comes_after_the_end_takes_the_result(root: Path, head: RayHead, calm: dict[str, Any]) -> None:
    training = Training(root, "late", head.address)
    driver = training.start()
    training.at_step(10, driver)
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    _until(lambda: training.ended, lambda: training.said)
    assert training.goes_well(training.start()) == calm
    assert "this training was finished before" in training.said and training.attempts == 1


def test_a_job_that_is_killed_is_submitted_again(root: Path, head: RayHead, calm: dict[str, Any]) -> None:
    training = Training(root, "job", head.address)
    driver = training.start()
    training.at_step(10, driver)
    for process in head.processes(["flows.job", training.name]):
        process.kill()
    assert training.goes_well(driver) == calm
    assert training.said.count("was killed on") == 1 and training.attempts == 2


def test_a_cluster_that_is_started_anew_gets_the_job_again(root: Path, tmp_path: Path, calm: dict[str, Any]) -> None:
    with RayHead(tmp_path / "head.log") as head, head.letting_in():
        training = Training(root, "anew", head.address)
        driver = training.start()
        training.at_step(10, driver)
        head.kill()
        head.start()
        assert training.goes_well(driver) == calm
        assert training.attempts == 1  # it never ended: the new cluster knows nothing of that id
        assert training.said.count("does not know the job") == 1


def test_ctrl_c_stops_the_job_and_the_command_goes_on(root: Path, head: RayHead, calm: dict[str, Any]) -> None:
    training = Training(root, "ctrl-c", head.address)
    driver = training.start()
    training.at_step(10, driver)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=120) == 130, training.said[-3000:]
    _end_group(driver)
    assert f"{training.name}-0001 was stopped on the cluster too" in training.said
    training.until_stopped()
    assert not training.ended
    assert training.goes_well(training.start()) == calm
    assert training.attempts == 2


def test_what_is_stopped_on_the_cluster_is_told(root: Path, head: RayHead) -> None:
    training = Training(root, "stopped", head.address)
    driver = training.start()
    training.at_step(10, driver)
    JobServer(head.address).stop(f"{training.name}-0001")
    assert driver.wait(timeout=120) == 2
    assert f"The job {training.name}-0001 was stopped on {head.address}" in training.said


def test_what_the_training_refuses_is_one_sentence(root: Path, head: RayHead) -> None:
    training = Training(root, "refused", head.address)
    row = training.run.training_shards()[1]
    training.run.store.put(row.object_key, b"other bytes")
    driver = training.start()
    assert driver.wait(timeout=300) == 2
    last = training.said.strip().splitlines()[-1]
    assert last.startswith("moa: ") and row.shard in last and "Traceback" not in training.said


def test_a_copy_of_the_project_is_uploaded(root: Path, head: RayHead, calm: dict[str, Any]) -> None:
    training = Training(root, "uploaded", head.address, {"ray.working_dir": str(REPOSITORY)})
    assert training.goes_well(training.start()) == calm


def test_the_whole_journey_goes_through_jobs(tmp_path: Path, head: RayHead) -> None:
    """Every stage, two of them side by side; the second time there is nothing to send but the look for new photos."""
    world = write_world(tmp_path / "world", photos=8)
    words = [sys.executable, "-m", "flows.cli", "retrain", "--workspace", str(tmp_path / "w")]
    changes = {**tiny_changes(world), "ray.address": head.address}
    words += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    first, second = (
        subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=600) for _ in range(2)
    )
    assert first.returncode == 0, first.stderr[-4000:]
    sent = [line.split("moa-")[1].split("-")[0] for line in first.stderr.splitlines() if "submitted as" in line]
    assert sent[:1] + sorted(sent[1:3]) + sent[3:] == ["ingest", "caption", "segment", "shard", "train", "evaluate"]
    assert second.returncode == 0 and "Nothing new" in second.stdout, second.stderr[-4000:]
    assert [line for line in second.stderr.splitlines() if "submitted as" in line and "moa-ingest" not in line] == []


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Prefect server of its own, and the environment that names it."""
    folder = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | environment, start_new_session=True
        )  # fmt: skip
    try:
        _until(lambda: _answers(f"{environment['PREFECT_API_URL']}/health"), (folder / "server.log").read_text)
        yield environment
    finally:
        _end_group(server)
        server.wait()


def test_a_run_that_is_cancelled_by_hand_stops_its_job(root: Path, head: RayHead, prefect: dict[str, str]) -> None:
    """Nobody but the run itself can tell that it is cancelled."""
    training = Training(root, "cancelled", head.address)
    driver = training.start(prefect)
    training.at_step(10, driver)
    (flow_run,) = _flow_runs(prefect, "RUNNING")
    _cancel(prefect, flow_run)
    assert driver.wait(timeout=120) == 2, training.said[-3000:]
    assert f"cancelled, and with it the job {training.name}-0001" in training.said
    training.until_stopped()
    assert _state_of(prefect, flow_run) == "CANCELLED" and not training.ended


def test_a_run_that_a_runner_cancels_stops_its_job(root: Path, head: RayHead, prefect: dict[str, str]) -> None:
    training = Training(root, "served", head.address)
    code = "from flows.train import train; train.serve(name='served')"
    environment = os.environ | prefect | {"PYTHONPATH": str(REPOSITORY)}
    training.settings.workspace.mkdir(parents=True, exist_ok=True)
    with training.log.open("ab") as log:
        runner = subprocess.Popen(
            [sys.executable, "-c", code], stdout=log, stderr=log, env=environment, cwd=REPOSITORY,
            start_new_session=True,
        )  # fmt: skip
    try:
        deployment = _until(lambda: _deployment(prefect), lambda: training.said, runner)
        parameters = {"settings": training.settings.model_dump(mode="json"), "from_scratch": True}
        flow_run = str(
            httpx.post(
                f"{prefect['PREFECT_API_URL']}/deployments/{deployment}/create_flow_run",
                json={"parameters": parameters, "state": {"type": "SCHEDULED"}},
            )
            .raise_for_status()
            .json()["id"]
        )
        training.at_step(10, runner)
        _cancel(prefect, flow_run)
        training.until_stopped()
        _until(lambda: _state_of(prefect, flow_run) == "CANCELLED", lambda: training.said)
        assert not training.ended
    finally:
        _end_group(runner)
        runner.wait()


def test_the_runners_hook_needs_nothing_but_the_run(root: Path, head: RayHead, prefect: dict[str, str]) -> None:
    """The driver is gone, and so is all that it knew; its flow run is in Prefect and its note in the store."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.cancellation import stop_jobs

    training = Training(root, "hook", head.address)
    driver = training.start(prefect)
    training.at_step(10, driver)
    (flow_run,) = _flow_runs(prefect, "RUNNING")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()

    async def read() -> Any:
        async with get_client() as client:
            return await client.read_flow_run(flow_run)

    with temporary_settings({PREFECT_API_URL: prefect["PREFECT_API_URL"]}):
        stop_jobs(None, asyncio.run(read()), None)
    training.until_stopped()


def _until(found: Callable[[], Any], said: Callable[[], str], driver: "subprocess.Popen[bytes] | None" = None) -> Any:
    deadline = time.monotonic() + 300
    while not (answer := found()):
        assert driver is None or driver.poll() is None, said()[-4000:]
        assert time.monotonic() < deadline, said()[-4000:]
        time.sleep(0.1)
    return answer


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """Whatever is left of the session that a process began."""
    for one in psutil.process_iter(["pid"]):
        try:
            if os.getsid(one.pid) == process.pid:
                one.kill()
        except (psutil.Error, ProcessLookupError):
            continue


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _flow_runs(prefect: Mapping[str, str], state: str) -> list[str]:
    asked = {"flow_runs": {"state": {"type": {"any_": [state]}}}}
    found = httpx.post(f"{prefect['PREFECT_API_URL']}/flow_runs/filter", json=asked).raise_for_status().json()
    return [one["id"] for one in found]


def _deployment(prefect: Mapping[str, str]) -> str:
    found = httpx.get(f"{prefect['PREFECT_API_URL']}/deployments/name/train/served")
    return str(found.json()["id"]) if found.status_code == 200 else ""


def _cancel(prefect: Mapping[str, str], flow_run: str) -> None:
    """As Prefect's page and `prefect flow-run cancel` do."""
    address = f"{prefect['PREFECT_API_URL']}/flow_runs/{flow_run}/set_state"
    httpx.post(address, json={"state": {"type": "CANCELLING"}}).raise_for_status()


def _state_of(prefect: Mapping[str, str], flow_run: str) -> str:
    return str(httpx.get(f"{prefect['PREFECT_API_URL']}/flow_runs/{flow_run}").json()["state"]["type"])
