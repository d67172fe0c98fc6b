"""`moa up`, photos dropped into the watched folder, a release; a bad batch, a refusal that the operator hears of;
`moa down`. Nobody types anything in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.run import Run
from flows.service_parts import _postgres_programs
from infra.ports import free_ports
from infra.service import marked, read_state
from infra.settings import Settings, load_settings
from preprocessing.sources.paperfolk_drawing import draw
from preprocessing.sources.paperfolk_world import picture_at
from tests.tiny_world import PIXELS, tiny_changes, write_models, write_people
from tests.webhook import Heard, listening

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("service"), pytest.mark.timeout(1500)]  # two minutes

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("incoming")
    return folder


@pytest.fixture(scope="module")
def changes(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    world = tmp_path_factory.mktemp("world")
    write_models(world / "models")
    write_people(world / "celeba")
    ports = ("prefect_port", "postgres_port", "ray_port", "ray_dashboard_port", "metrics_port", "scrape_port")
    return {
        **tiny_changes(world),
        "ingest.source": f"folder:{photos}",
        "ray.object_store_mb": "80",
        "service.quiet_seconds": "2",
        "service.look_seconds": "0.5",
        "service.notify": "webhook",
        "service.notify_secret": "MOA_TEST_HOOK",
        **{f"service.{name}": str(port) for name, port in zip(ports, free_ports(len(ports)), strict=True)},
    }


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    """Which the user postgres may enter: run by root, the service has PostgreSQL where that is installed."""
    with tempfile.TemporaryDirectory(prefix="moa-service-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        shutil.rmtree(json.loads((Path(folder) / "service" / "ray-folder.json").read_text()), ignore_errors=True)


@pytest.fixture(scope="module")
def settings(changes: dict[str, str], workspace: Path) -> Settings:
    return load_settings("demo", workspace, changes)


@pytest.fixture(scope="module")
def heard() -> Iterator[Heard]:
    with listening() as heard:
        yield heard


@pytest.fixture(scope="module")
def moa(changes: dict[str, str], workspace: Path, heard: Heard) -> Callable[..., Any]:
    def run(command: str, *more: str) -> Any:
        options = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", command, *more, "--json", "--workspace", str(workspace), *options],
            cwd=REPOSITORY, capture_output=True, text=True, timeout=600,
            env=os.environ | {"MOA_TEST_HOOK": heard.address, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + _logs(workspace)
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="module")
def up(moa: Callable[..., Any], workspace: Path) -> Iterator[dict[str, Any]]:
    try:
        yield moa("up")
    finally:
        moa("down")
        assert marked(workspace / "service") == []


def test_everything_comes_up_and_a_second_up_changes_nothing(up: dict[str, Any], moa: Callable[..., Any]) -> None:
    assert not up["already"] and up["phase"] == "ready"
    assert {"prefect-server", "ray-head", "worker", "watcher"} <= up["parts"].keys()
    assert {about["state"] for about in up["parts"].values()} == {"ready", "done"}
    assert ("postgresql" in up["parts"]) == (_postgres_programs() is not None)  # Debian's has the user postgres
    again = moa("up")
    assert again["already"] and {n: a["pid"] for n, a in again["parts"].items()} == {
        n: a["pid"] for n, a in up["parts"].items()
    }


def test_photos_that_are_dropped_lead_to_a_release(
    up: dict[str, Any], photos: Path, settings: Settings, workspace: Path
) -> None:
    for number in range(24):
        draw(picture_at(0, number), PIXELS).image.save(photos / f"{number:04d}.png")
    run = Run(settings)
    _until(lambda: run.releases.current("production") is not None, workspace)
    assert [release.number for release in run.releases.all()] == [1]
    assert run.catalog.counts(run.fingerprints).seen == 24
    assert (workspace / "report.html").is_file() or _until(lambda: (workspace / "report.html").is_file(), workspace)


def test_a_bad_batch_is_refused_and_the_operator_hears_of_it(
    up: dict[str, Any], photos: Path, settings: Settings, workspace: Path, heard: Heard
) -> None:
    for number in range(5):
        (photos / f"broken-{number}.png").write_bytes(b"no picture %d" % number)
    _until(lambda: [text for text in heard.texts() if "None of 5 new photos can be used" in text], workspace)
    assert [release.number for release in Run(settings).releases.all()] == [1]


def test_a_worker_that_dies_is_started_again_and_down_works_without_the_supervisor(
    up: dict[str, Any], moa: Callable[..., Any], workspace: Path
) -> None:
    home = workspace / "service"
    before = read_state(home)["parts"]["worker"]["pid"]
    os.kill(before, signal.SIGKILL)
    _until(
        lambda: (about := read_state(home)["parts"]["worker"])["state"] == "ready" and about["pid"] != before, workspace
    )
    assert read_state(home)["parts"]["worker"]["restarts"] == 1
    os.kill(read_state(home)["pid"], signal.SIGKILL)
    assert moa("down")["processes"] > 4
    assert marked(home) == []


def _until(found: Callable[[], Any], workspace: Path) -> Any:
    deadline = time.monotonic() + 600
    while not (value := found()):
        assert time.monotonic() < deadline, _logs(workspace)
        time.sleep(0.5)
    return value


def _logs(workspace: Path) -> str:
    logs = sorted((workspace / "service" / "logs").glob("*.log"))
    return "\n".join(f"== {path.name}\n{path.read_text('utf-8', 'replace')[-3000:]}" for path in logs)
