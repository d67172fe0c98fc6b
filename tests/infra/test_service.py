"""The supervisor with small processes of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import UserError
from infra.service import NotStarted, Part, Supervisor, is_up, read_state, start, stop
from infra.service_processes import MARK, marked
from tests.faults.small_disk import MayNotMount, SmallDisk

LISTENS = """
import http.server, subprocess, sys
# A grandchild in a session of its own, as Ray's are: it is found all the same.
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""


SIZES = (("grown", 50.0), ("within", 5000.0))


def _python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def _listener(name: str = "listener") -> Part:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    return Part(name, _python(LISTENS, str(port)), f"tcp:{port}", port=port)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    home = tmp_path / "service"
    yield home
    stop(home)
    assert marked(home) == []


def _until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_parts_start_in_order_and_go_with_all_that_they_started(home: Path, tmp_path: Path) -> None:
    note, said = tmp_path / "note", list[str]()
    first = Part("first", _python(f"open({str(note)!r}, 'w').write('x')"), "exit")
    needs = _python(
        f"assert open({str(note)!r}).read() == 'x'; print('here', flush=True); import time; time.sleep(600)"
    )
    state = start(home, [first, _listener(), Part("says", needs, "says:here")], said.append)
    assert {name: about["state"] for name, about in state["parts"].items()} == {
        "first": "done", "listener": "ready", "says": "ready"
    }  # fmt: skip
    assert is_up(home) and len(marked(home)) == 4  # the supervisor, two parts and a grandchild
    assert said == sorted(said, key=["starting first", "starting listener", "starting says"].index)
    assert stop(home) == 4 and not is_up(home) and marked(home) == []
    assert read_state(home)["phase"] == "down"
    assert stop(home) == 0


def test_a_supervisor_that_was_killed_leaves_nothing_behind(home: Path) -> None:
    parts = [_listener()]
    state = start(home, parts)
    os.kill(state["pid"], signal.SIGKILL)
    _until(lambda: not is_up(home))
    assert len(marked(home)) == 2
    again = start(home, parts)  # its leftovers are not in the way of a new one
    assert again["parts"]["listener"]["pid"] != state["parts"]["listener"]["pid"]
    assert stop(home) == 3


def test_a_part_that_dies_is_started_again(home: Path) -> None:
    before = start(home, [_listener()])["parts"]["listener"]["pid"]
    for process in psutil.Process(before).children(recursive=True):
        process.kill()
    os.kill(before, signal.SIGKILL)
    _until(lambda: read_state(home)["parts"]["listener"]["restarts"] == 1)
    about = _until(lambda: (now := read_state(home)["parts"]["listener"])["state"] == "ready" and now)
    assert about["pid"] != before


def test_a_full_disk_ends_no_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    try:
        with SmallDisk(tmp_path / "disk", 2) as disk:
            home = disk.path / "service"
            try:
                state = start(home, [_listener()])
                disk.fill()
                before = state["parts"]["listener"]["pid"]
                for process in psutil.Process(before).children(recursive=True):
                    process.kill()
                os.kill(before, signal.SIGKILL)
                _until(lambda: [one for one in psutil.Process(state["pid"]).children() if one.pid != before])
                assert is_up(home) and read_state(home)["parts"]["listener"]["pid"] == before  # no room to say more
                disk.clear()
                now = _until(lambda: (now := read_state(home)["parts"]["listener"])["pid"] != before and now)
                assert now["restarts"] == 1
            finally:
                stop(home)
                assert marked(home) == []
    except MayNotMount as error:
        pytest.skip(f"no small disk here: {error}")


def test_a_part_that_does_not_come_up_is_one_sentence_and_nothing_stays(home: Path) -> None:
    broken = Part("broken", _python("import sys; print('no disk', flush=True); sys.exit(3)"), "says:here")
    with pytest.raises(NotStarted, match=r"broken ended with 3 \(no disk\): see .*broken.log"):
        start(home, [_listener(), broken])
    assert marked(home) == [] and not is_up(home)
    silent = Part("silent", _python("import time; time.sleep(600)"), "says:here", start_seconds=0.5)
    with pytest.raises(NotStarted, match="silent was not ready within 0 s|silent was not ready within 1 s"):
        start(home, [silent])
    with pytest.raises(NotStarted, match="absent could not be started"):
        start(home, [Part("absent", ["/nowhere/to/be/found"], "exit")])


def test_a_port_in_use_is_one_sentence(home: Path) -> None:
    part = _listener()
    with socket.socket() as other:
        other.bind(("127.0.0.1", part.port))
        other.listen()
        with pytest.raises(UserError, match=f"Port {part.port}, which listener needs, is in use"):
            start(home, [part])
    assert marked(home) == []


def test_the_plan_with_its_passwords_is_its_owners_alone(home: Path) -> None:
    secret = Part("secret", _python("import time; time.sleep(600)"), "exit", {"PASSWORD": "x"}, start_seconds=0.2)
    with pytest.raises(NotStarted):
        start(home, [secret])
    assert (home / "plan.json").stat().st_mode & 0o077 == 0
    assert json.loads((home / "plan.json").read_text())[0]["environment"] == {"PASSWORD": "x"}
    assert "PASSWORD" not in (home / "state.json").read_text()


def test_a_part_that_grew_is_started_anew_while_nobody_needs_it(home: Path) -> None:
    held = "held = b'x' * 80_000_000; print('here', flush=True); import time; time.sleep(600)"
    (home / "logs").mkdir(parents=True)
    large, small = (Part(name, _python(held), "says:here", most_mb=most, busy="at-work") for name, most in SIZES)
    supervisor = Supervisor(home, [large, small])
    assert [supervisor._bring_up(child) for child in supervisor.children] == ["", ""]
    grown, other = supervisor.children
    worker = subprocess.Popen(_python("import time; time.sleep(600)", "at-work"), env=os.environ | {MARK: str(home)})
    supervisor._weigh()
    assert grown.ended() is None
    worker.kill()
    worker.wait()
    supervisor._weigh()
    assert grown.ended() is not None and other.ended() is None
    _until(lambda: supervisor._look_after(grown) and grown.ended() is None)
    assert grown.restarts == 1
