"""What moto cannot show: credentials that count, races of processes, a server that is killed, versions, a clock."""

import datetime
import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import pytest

from infra import ceph, large_objects
from infra.ceph import ENDPOINT, CephServer, missing
from infra.errors import UserError
from infra.pulling import pull, pull_from
from infra.registry import Release, Releases
from infra.release_cache import CACHE
from infra.storage import S3Store
from infra.upkeep import verify

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.faults, pytest.mark.skipif(bool(missing()), reason=missing())]


@pytest.fixture(scope="module")
def server() -> Iterator[CephServer]:
    one = CephServer(Path(f"/tmp/moa-ceph-{os.getpid()}"))  # short: the paths of sockets have a limit
    environment = one.start()
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    boto3.DEFAULT_SESSION = None  # it remembers the credentials of its first client
    try:
        yield one
    finally:
        one.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        boto3.DEFAULT_SESSION = None


@pytest.fixture
def store(server: CephServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    bucket = f"b{time.monotonic_ns()}"
    boto3.client("s3", endpoint_url=os.environ[ENDPOINT]).create_bucket(Bucket=bucket)
    return S3Store(bucket, "some/prefix", os.environ[ENDPOINT], attempts=2)


def _publish(store: S3Store, start: Any, content: int) -> tuple[Release, list[str]]:
    said: list[str] = []
    start.wait(120)
    return Releases(store).publish({"adapter.bin": b"%d" % content}, {"run_id": str(content)}, said.append), said


def _promote(store: S3Store, start: Any, release_id: str) -> str:
    releases = Releases(store)
    last = releases.names.current("production")
    start.wait(120)
    try:
        releases._move("production", releases._by_id(release_id) or Release(0, ""), "racing", last)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("racers", [2, 16])
def test_of_racing_processes_each_gets_a_number_of_its_own_and_one_moves_the_name(store: S3Store, racers: int) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(racers, mp_context=context) as pool:
        start = manager.Barrier(racers)
        made = [one.result(240) for one in [pool.submit(_publish, store, start, n) for n in range(racers)]]
        assert sorted(release.number for release, _ in made) == list(range(1, racers + 1))
        releases = Releases(store)
        for content, (release, said) in enumerate(made):
            assert releases.read(release, "adapter.bin") == b"%d" % content
            assert all(f"this one is release {release.number}." in sentence for sentence in said)
        start = manager.Barrier(racers)
        ids = [release.id for release, _ in made]
        told = [one.result(240) for one in [pool.submit(_promote, store, start, one) for one in ids]]
    assert told.count("") == 1 and all("moved by somebody else" in one for one in told if one)
    [move] = releases.history("production")
    assert move.release.id == ids[told.index("")] and verify(releases) == []


def test_wrong_credentials_are_refused_in_a_sentence(store: S3Store, tmp_path: Path, monkeypatch: Any) -> None:
    Releases(store).publish({"adapter.bin": b"1"}, {})
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        with monkeypatch.context() as wrong:
            wrong.setattr(boto3, "DEFAULT_SESSION", None)
            wrong.setenv(name, "somebody-else")
            stranger = S3Store(store.bucket, store.prefix, store.endpoint_url, attempts=2)
            for work in (
                lambda stranger=stranger: pull_from(stranger, "1", "", tmp_path / "out"),
                lambda stranger=stranger: Releases(stranger).publish({"adapter.bin": b"2"}, {}),
            ):
                with pytest.raises(UserError, match="AWS credentials") as refusal:
                    work()
                assert "\n" not in str(refusal.value) and "somebody-else" not in str(refusal.value)
    assert len(Releases(store).all()) == 1 and not (tmp_path / "out").exists()


def test_a_clock_that_is_wrong_is_refused_in_a_sentence(store: S3Store, tmp_path: Path, monkeypatch: Any) -> None:
    Releases(store).publish({"adapter.bin": b"1"}, {})
    with monkeypatch.context() as wrong:
        now = botocore.auth.get_current_datetime
        wrong.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: now(*a, **k) + datetime.timedelta(hours=1))
        late = S3Store(store.bucket, store.prefix, store.endpoint_url, attempts=2)
        with pytest.raises(UserError, match="clock") as refusal:
            pull_from(late, "1", "", tmp_path / "out")
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_a_bucket_with_versions_ignores_the_condition_and_is_refused(store: S3Store) -> None:
    store.client.put_bucket_versioning(Bucket=store.bucket, VersioningConfiguration={"Status": "Enabled"})
    with pytest.raises(UserError, match="If-None-Match"):
        Releases(store).publish({"adapter.bin": b"1"}, {})
    assert Releases(store).all() == []


def test_a_server_that_is_killed_in_the_middle_loses_nothing(
    server: CephServer, store: S3Store, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(200 * 2**20))
    Releases(store).publish({"adapter.bin": tmp_path / "large"}, {})
    address, came, gone = f"s3://{store.bucket}/{store.prefix}/moa@1", threading.Event(), threading.Event()
    asked, had, read = itertools.count(), set(), large_objects._Bucket.read_into

    def read_into(self: Any, key: str, start: int, *rest: Any) -> None:
        if next(asked) >= 3:  # of 13 parts: however the threads are scheduled, some are asked for after the end
            assert gone.wait(60)
        read(self, key, start, *rest)
        had.add((key, start))
        came.set()

    def cut() -> None:
        came.wait(60)
        server.kill_gateway()
        gone.set()

    killer = threading.Thread(target=cut)
    killer.start()
    try:
        with monkeypatch.context() as slow, pytest.raises(UserError) as refusal:
            slow.setattr(large_objects._Bucket, "read_into", read_into)
            pull(address, tmp_path / "out", endpoint_url=store.endpoint_url)
        assert came.is_set() and "\n" not in str(refusal.value) and not (tmp_path / "out").exists()
    finally:
        came.set()
        killer.join()
        server.start_gateway()
    first = had.copy()
    had.clear()
    with monkeypatch.context() as counted:
        counted.setattr(large_objects._Bucket, "read_into", read_into)
        pull(address, tmp_path / "out", endpoint_url=store.endpoint_url)
    assert 1 <= len(first) <= 3 and had and not first & had  # what had come is not fetched again
    assert (tmp_path / "out" / "adapter.bin").read_bytes() == (tmp_path / "large").read_bytes()
    assert verify(Releases(store)) == []


def test_it_runs_for_a_command_and_leaves_nothing() -> None:
    code = f"import os; print(os.environ[{ENDPOINT!r}], os.environ['AWS_ACCESS_KEY_ID'])"
    command = [sys.executable, "-m", "infra.ceph", "run", sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stdout.startswith("http://127.0.0.1:"), ran
    with pytest.raises(OSError):
        urllib.request.urlopen(ran.stdout.split()[0], timeout=5)


def test_a_gateway_that_cannot_listen_says_why(tmp_path: Path, monkeypatch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = ceph.free_ports(1)
        monkeypatch.setattr(ceph, "free_ports", lambda count: [*free, other.getsockname()[1]])
        with pytest.raises(UserError, match="did not start: port [0-9]+ .* in use"):
            CephServer(tmp_path / "c").start()
    assert not (tmp_path / "c").exists()


def test_a_gateway_that_crashes_after_its_error_says_the_error(tmp_path: Path, monkeypatch: Any) -> None:
    words = "2026-11-30T18:07:25.749+0000 7fc91e3d8e40 -1 failed to bind: Address already in use\n\n"
    words += "terminate called after throwing an instance of 'boost::wrapexcept<boost::bad_get>'\n" * 9
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "radosgw").write_text(f"#!/bin/sh\ncat {programs}/words\nexit 1\n")
    (programs / "radosgw").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for said, reason in (
        (words, "failed to bind: Address already in use."),
        ("no such file\n", "no such file."),
        ("", "it said .*1.*"),
    ):
        (programs / "words").write_text(said)
        with pytest.raises(UserError, match=f"did not start: {reason}$"):
            CephServer(tmp_path / "c").start()


def test_without_the_packages_it_is_one_sentence(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(ceph, "_PROGRAMS", ("no-such-program",))
    assert ceph.main(["run", "false"]) == 0 and "apt-get install" in capsys.readouterr().out
    with pytest.raises(UserError, match="no-such-program"):
        CephServer(tmp_path / "ceph").start()
    assert ceph.main([]) == 2
