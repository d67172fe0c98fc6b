"""`moa up`, photos dropped into the watched folder, a release; a bad batch, a refusal that the operator hears of; its
servers killed in the middle of a run; `moa down`. Nobody types anything in between."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.run import Run
from flows.service_parts import _postgres_programs
from infra.service import read_state
from infra.service_processes import family, marked
from tests.open_ports import open_ports, reached_from_outside
from tests.running_service import RunningService
from tests.webhook import Heard, listening

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("service"), pytest.mark.timeout(1500)]  # four minutes


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    with listening() as heard:
        yield heard


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, heard: Heard) -> Iterator[RunningService]:
    """In a workspace which the user postgres may enter: run by root, it has PostgreSQL where that is installed."""
    notify = {"service.notify": "webhook", "service.notify_secret": "MOA_TEST_HOOK"}
    with tempfile.TemporaryDirectory(prefix="moa-service-") as folder:
        Path(folder).chmod(0o755)
        world, photos = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("incoming")
        service = RunningService(world, photos, Path(folder), notify, {"MOA_TEST_HOOK": heard.address})
        yield service
        shutil.rmtree(service.ray_folder, ignore_errors=True)


@pytest.fixture(scope="module")
def up(service: RunningService) -> Iterator[dict[str, Any]]:
    try:
        yield service.moa("up")
    finally:
        service.moa("down")
        assert marked(service.home) == []


def test_everything_comes_up_and_a_second_up_changes_nothing(up: dict[str, Any], service: RunningService) -> None:
    assert not up["already"] and up["phase"] == "ready"
    assert {"prefect-server", "ray-head", "worker", "watcher"} <= up["parts"].keys()
    assert {about["state"] for about in up["parts"].values()} == {"ready", "done"}
    assert ("postgresql" in up["parts"]) == (_postgres_programs() is not None)  # Debian's has the user postgres
    again = service.moa("up")
    assert again["already"] and {n: a["pid"] for n, a in again["parts"].items()} == {
        n: a["pid"] for n, a in up["parts"].items()
    }


def test_nobody_listens_to_other_machines(up: dict[str, Any], service: RunningService) -> None:
    ports = open_ports(marked(service.home))
    assert len(ports) > 10  # Ray alone has as many
    assert reached_from_outside(ports) == []


def test_photos_that_are_dropped_lead_to_a_release(up: dict[str, Any], service: RunningService) -> None:
    service.drop(range(24))
    run = Run(service.settings)
    service.until(lambda: run.releases.current("production") is not None)
    assert [release.number for release in run.releases.all()] == [1]
    assert run.catalog.counts(run.fingerprints).seen == 24
    service.until((service.workspace / "report.html").is_file)


def test_a_bad_batch_is_refused_and_the_operator_hears_of_it(
    up: dict[str, Any], service: RunningService, heard: Heard
) -> None:
    service.drop(range(24, 29), broken=range(24, 29))
    service.until(lambda: [text for text in heard.texts() if "None of 5 new photos can be used" in text])
    assert [release.number for release in Run(service.settings).releases.all()] == [1]


@pytest.mark.parametrize("server", ["prefect-server", "postgresql"])
def test_a_server_that_is_killed_in_the_middle_of_a_run_loses_nothing_of_it(
    server: str, up: dict[str, Any], service: RunningService
) -> None:
    if server not in up["parts"]:
        pytest.skip("PostgreSQL is not installed, or the user postgres may not come in")
    undisturbed = service.until(lambda: service.retrains(["COMPLETED"]))[0]
    known, run = {one["id"] for one in service.retrains()}, Run(service.settings)
    releases, seen = len(run.releases.all()), run.catalog.counts(run.fingerprints).seen
    service.drop(range(seen, seen + 6))
    (going,) = service.until(lambda: [one for one in service.retrains(["RUNNING"]) if one["id"] not in known])
    service.until(lambda: {"ingest"} <= {name for name, state in _stages(service, going) if state == "Completed"})
    before = service.parts()[server]
    for process in reversed(family(before["pid"])):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    service.until(lambda: (now := service.parts()[server])["state"] == "ready" and now["pid"] != before["pid"])

    ended = service.until(
        lambda: (now := service.ask(f"flow_runs/{going['id']}"))["state"]["type"] not in ("RUNNING", "PENDING") and now
    )
    assert ended["state"]["name"] == "Completed" and ended["run_count"] == 1, ended["state"]["message"]
    assert _stages(service, going) == _stages(service, undisturbed)
    # A task's end is an event, which its sender keeps until the server has it.
    service.until(lambda: _tasks(service, going) == _tasks(service, undisturbed), seconds=120)
    assert [one["id"] for one in service.retrains() if one["id"] not in known] == [going["id"]]
    assert len(run.releases.all()) == releases + 1
    assert len(run.releases.history("production")) == releases + 1
    assert run.catalog.counts(run.fingerprints).seen == seen + 6


def _stages(service: RunningService, run: dict[str, Any]) -> list[tuple[str, str]]:
    """The flow runs that are parts of a run: (flow, state)."""
    found = service.ask("flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run["id"]]}}})
    names = {flow["id"]: flow["name"] for flow in service.ask("flows/filter", {})}
    return sorted((names[one["flow_id"]], one["state"]["name"]) for one in found)


def _tasks(service: RunningService, run: dict[str, Any]) -> list[tuple[str, str]]:
    """Its task runs: (task, state)."""
    found = service.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    return sorted((one["task_key"], one["state"]["name"]) for one in found)


def test_a_worker_that_dies_is_started_again_and_down_works_without_the_supervisor(
    up: dict[str, Any], service: RunningService
) -> None:
    before = service.parts()["worker"]["pid"]
    os.kill(before, signal.SIGKILL)
    service.until(lambda: (about := service.parts()["worker"])["state"] == "ready" and about["pid"] != before)
    assert service.parts()["worker"]["restarts"] == 1
    os.kill(read_state(service.home)["pid"], signal.SIGKILL)
    assert service.moa("down")["processes"] > 4
    assert marked(service.home) == []
