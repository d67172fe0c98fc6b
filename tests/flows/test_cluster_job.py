"""Stages as jobs on a real Ray head: submitted, found again, refused. Kills and lost connections: `tests/faults`."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows import cluster_job, job_records
from flows.cluster_job import ClusterJob, JobLost, runtime_env
from flows.job_records import NO_REQUEST, Attempt
from flows.run import Run
from infra.errors import UserError
from infra.ray_jobs import JobState
from infra.settings import Settings
from tests.faults.lost_connection import Relay
from tests.ray_head import RayHead
from tests.tiny_world import tiny_changes, tiny_settings, write_world

pytestmark = [pytest.mark.xdist_group("cluster_job"), pytest.mark.timeout(600)]  # a minute on an idle machine

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with RayHead(tmp_path_factory.mktemp("head") / "head.log") as head, head.letting_in():
        yield head


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), photos=8)


@pytest.fixture(scope="module")
def settings(head: RayHead, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return tiny_settings(world, tmp_path_factory.mktemp("workspace"), {"ray.address": head.address})


@pytest.fixture(scope="module")
def command(settings: Settings, world: Path) -> "subprocess.CompletedProcess[str]":
    """`moa ingest`, whose work is done on the cluster."""
    words = [sys.executable, "-m", "flows.cli", "ingest", "--workspace", str(settings.workspace)]
    changes = {**tiny_changes(world), "ray.address": settings.ray.address}
    words += [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=400)


def test_a_command_sends_its_stage_and_shows_what_it_does(
    settings: Settings, command: "subprocess.CompletedProcess[str]"
) -> None:
    assert command.returncode == 0, command.stderr
    assert "10 new photos, 8 kept" in command.stdout + command.stderr
    (name,) = {key.split("/")[1] for key in Run(settings).store.list(job_records.ROOT)}
    for said in (f"submitted as the job {name}-0001", "Running entrypoint for job", "is succeeded"):
        assert said in command.stderr
    assert "ingest: shards" in command.stderr  # the bar
    assert len(Run(settings).shards("ingest")) == 2
    with sqlite3.connect(settings.workspace / "prefect" / "prefect.db") as database:
        kinds = {kind for (kind,) in database.execute("select type from artifact")}
        assert {"progress", "table", "markdown"} <= kinds
        lines = "\n".join(line for (line,) in database.execute("select message from log"))
        assert "Running entrypoint for job" in lines
        assert database.execute("select name from task_run where name = ?", (name,)).fetchone() == (name,)


def test_two_who_want_the_same_wait_for_one_job(settings: Settings, command: object) -> None:
    """On the store that is filled by now: the second attempt of the same name finds nothing to do."""
    name = _name(settings)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(_job(settings).follow) for _ in range(2)]
        first, second = (one.result(timeout=300) for one in both)
    assert first == second and first["result"]["note"] == "no new photos"
    assert job_records.latest(Run(settings).store, name) == Attempt(name, 2)


def test_what_the_stage_refuses_is_its_own_sentence(settings: Settings, command: object) -> None:
    other = settings.model_copy(update={"ingest": settings.ingest.model_copy(update={"min_side": 20})})
    came = _job(other).follow()
    assert came["refused"].startswith(f"The photos in {settings.store_root} were ingested with other ingest settings")


def test_a_dashboard_that_is_not_there_is_named(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_job, "_FIRST_PATIENCE_SECONDS", 0.0)
    nowhere = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": "http://127.0.0.1:1"})})
    with pytest.raises(UserError, match="http://127.0.0.1:1 has not answered .* mend ray.address"):
        ClusterJob(nowhere, "moa-ingest-nowhere", "ingest", {}).follow()


def test_a_dashboard_that_has_answered_before_is_waited_for(
    settings: Settings, command: object, head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be started anew between two stages of a run, when nothing of the next one was submitted yet."""
    monkeypatch.setattr(cluster_job, "_FIRST_PATIENCE_SECONDS", -1.0)  # none: the first time is too long
    with Relay(head.ports["dashboard"]) as relay, ThreadPoolExecutor(1) as pool:
        there = settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": relay.address})})
        _job(there).follow()
        relay.stop()
        second = _job(there)
        waiting = pool.submit(second.follow)
        while not second._away_since and not waiting.done():
            time.sleep(0.05)
        relay.start()
        assert waiting.result(timeout=300)["result"]["note"] == "no new photos"


def test_every_bad_end_has_its_sentence(settings: Settings) -> None:
    job, attempt = _job(settings), Attempt("moa-ingest-0", 1)

    def says(status: str, message: str = "", exit_code: int | None = None, killed: bool = False) -> Exception:
        return job._ended_badly(attempt, JobState(status, message, exit_code, killed))

    assert "does not see" in str(says("FAILED", exit_code=NO_REQUEST)) and settings.store_root in str(
        says("FAILED", exit_code=NO_REQUEST)
    )
    assert "does not have this project" in str(says("FAILED", "x\n/bin/python: No module named flows\n", 1))
    assert "was stopped" in str(says("STOPPED")) and isinstance(says("STOPPED"), UserError)
    assert isinstance(says("FAILED", "memory", -9, killed=True), JobLost)
    assert not isinstance(says("FAILED", "a bug", 1), UserError)


def test_what_the_job_gets_from_here(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_ray(**changes: Any) -> Settings:
        return settings.model_copy(update={"ray": settings.ray.model_copy(update=changes)})

    monkeypatch.setenv("MOA_SECRET", "it is 7 o clock")
    monkeypatch.delenv("MOA_ABSENT", raising=False)
    assert runtime_env(with_ray(environment=["MOA_SECRET"])) == {"env_vars": {"MOA_SECRET": "it is 7 o clock"}}
    request = job_records.request_for(Run(with_ray(environment=["MOA_SECRET"])), "ingest", {})
    assert b"MOA_SECRET" in request and b"o clock" not in request
    with pytest.raises(UserError, match="MOA_ABSENT, which is not set"):
        runtime_env(with_ray(environment=["MOA_ABSENT"]))
    assert runtime_env(with_ray(working_dir=str(REPOSITORY)))["working_dir"] == str(REPOSITORY)
    with pytest.raises(UserError, match="no copy of this project"):
        runtime_env(with_ray(working_dir=str(tmp_path)))


def _name(settings: Settings) -> str:
    run = Run(settings)
    return job_records.job_name(settings, "ingest", [run.fingerprints["ingest"], settings.ingest.source])


def _job(settings: Settings) -> ClusterJob:
    return ClusterJob(settings, _name(settings), "ingest", {})
