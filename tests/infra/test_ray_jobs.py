"""Ray's Jobs API on a real head: what is submitted twice runs once, and every end has its name."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.code_version import code_digest
from infra.doctor import Check, diagnose
from infra.errors import UserError
from infra.ray_jobs import Away, JobServer, JobState, is_dashboard
from infra.settings import load_settings
from tests.ray_head import RayHead


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    with RayHead(tmp_path_factory.mktemp("head") / "head.log") as head, head.letting_in():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # other programs' business
            yield head


@pytest.fixture
def stranger(head: RayHead) -> Iterator[None]:
    """This process has another cluster's token."""
    known, head.token = head.token, "0" * 64
    with head.letting_in():
        head.token = known
        yield


@pytest.fixture(scope="module")
def server(head: RayHead) -> JobServer:
    server = JobServer(head.address)
    _until(lambda: _answers(server))
    return server


def test_only_a_web_address_takes_jobs() -> None:
    assert is_dashboard("http://head:8265") and is_dashboard("https://ray.example/x")
    assert not any(map(is_dashboard, ("", "auto", "127.0.0.1:6379", "ray://head:10001")))


def test_what_is_submitted_twice_runs_once(server: JobServer, tmp_path: Path) -> None:
    assert server.state("once-0001") is None
    for _ in range(2):
        server.submit("once-0001", f"echo $WORD; echo x >> {tmp_path / 'ran'}", {"env_vars": {"WORD": "said"}})
    assert _end(server, "once-0001").status == "SUCCEEDED"
    assert (tmp_path / "ran").read_text() == "x\n"
    assert "said" in server.log("once-0001").splitlines()
    server.stop("once-0001")
    assert _end(server, "once-0001").status == "SUCCEEDED"


def test_every_end_has_its_name(server: JobServer) -> None:
    commands = {"refused-0001": "echo why; exit 78", "killed-0001": "kill -9 $$", "stopped-0001": "sleep 600"}
    for job, command in commands.items():
        server.submit(job, command, {})
    _until(lambda: _state(server, "stopped-0001").status == "RUNNING")
    server.stop("stopped-0001")
    server.stop("never-0001")
    refused, killed, stopped = (_end(server, job) for job in commands)
    assert (refused.status, refused.exit_code, refused.killed) == ("FAILED", 78, False) and "why" in refused.message
    assert (killed.status, killed.killed) == ("FAILED", True)
    assert (stopped.status, stopped.killed) == ("STOPPED", False)


def test_what_it_does_not_take_is_one_sentence(server: JobServer) -> None:
    with pytest.raises(UserError, match=r"does not take the job: FileNotFoundError: .*no/path.log'?\.$"):
        server.submit("no/path", "true", {})
    assert server.state("no-path") is None


def test_the_doctor_says_what_the_cluster_needs(head: RayHead, server: JobServer, tmp_path: Path) -> None:
    def ray(**changes: str) -> Check:
        found = {key.replace("__", "."): value for key, value in changes.items()}
        checks = {check.name: check for check in diagnose(load_settings("demo", tmp_path, found))}
        assert "accelerator" not in checks and "memory" not in checks  # this machine only waits
        return checks["ray"]

    takes = ray(ray__address=head.address)
    assert takes.ok and code_digest() in takes.detail and str(tmp_path / "store") in takes.detail
    uploads = ray(ray__address=head.address, ray__working_dir="/copy", storage__root="s3://b/x")
    assert "uploads /copy" in uploads.detail and "must see" not in uploads.detail
    assert "does not answer" in ray(ray__address="http://127.0.0.1:1").detail


def test_nobody_there_and_nobody_let_in(head: RayHead, stranger: None, tmp_path: Path) -> None:
    """The last one of this file: what it leaves is read anew by the next session of Ray."""
    with pytest.raises(Away):
        JobServer("http://127.0.0.1:1").connect()
    with pytest.raises(UserError, match="does not let this machine in"):
        JobServer(head.address).state("once-0001")
    (ray,) = (
        one for one in diagnose(load_settings("demo", tmp_path, {"ray.address": head.address})) if one.name == "ray"
    )
    assert not ray.ok and "does not let this machine in" in ray.detail


def _answers(server: JobServer) -> bool:
    try:
        server.connect()
    except Away:
        return False
    return True


def _state(server: JobServer, job: str) -> JobState:
    state = server.state(job)
    assert state is not None
    return state


def _end(server: JobServer, job: str) -> JobState:
    _until(lambda: _state(server, job).ended)
    return _state(server, job)


def _until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.2)
