"""A service's processes, with small ones of this test's own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.service_processes import command_of, end_all, end_marked, family, held_mb, marked, marked_environment

_CHILD = "held = b'x' * 50_000_000; print('here', flush=True); import time; time.sleep(600)"
_STARTS_ANOTHER = """
import signal, subprocess, sys
def another(*_):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    sys.exit()
signal.signal(signal.SIGTERM, another)
print("here", flush=True)
signal.pause()
"""
_PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_CHILD!r}, 'grandchild'])"


@pytest.fixture
def process(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """With a child of its own that holds 50 MB."""
    environment = marked_environment(tmp_path)
    command = [sys.executable, "-c", _PARENT, "parent"]
    started = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True)
    assert started.stdout is not None and started.stdout.readline() == b"here\n"
    try:
        yield started
    finally:
        end_marked(tmp_path)
        started.wait()
        started.stdout.close()


def test_all_that_carry_the_mark_are_found_and_end(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    found = marked(tmp_path)
    assert {command_of(one)[-1] for one in found} == {"parent", "grandchild"}
    assert os.getpid() not in {one.pid for one in found}
    assert marked(tmp_path / "another") == []
    end_all(found)
    assert marked(tmp_path) == [] and not any(one.is_running() for one in found)


def test_a_family_is_weighed_whole(process: "subprocess.Popen[bytes]") -> None:
    everyone = family(process.pid)
    assert [command_of(one)[-1] for one in everyone] == ["parent", "grandchild"]
    assert 50 < held_mb(everyone) - held_mb(everyone[:1]) < 100


def test_who_is_gone_says_nothing_and_holds_nothing(process: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    everyone = family(process.pid)
    end_all(everyone)
    process.wait()
    assert [command_of(one) for one in everyone] == [[], []] and held_mb(everyone) == 0
    with pytest.raises(psutil.NoSuchProcess):
        family(process.pid)


def test_what_is_started_meanwhile_ends_too(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-c", _STARTS_ANOTHER], marked_environment(tmp_path)
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, start_new_session=True) as started:
        assert started.stdout is not None and started.stdout.readline() == b"here\n"
        end_marked(tmp_path)
    assert marked(tmp_path) == []
