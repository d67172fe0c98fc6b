"""Workers share a list: everything is done, once, by whoever comes first."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.plan import DEFAULT, PRIOR, Drawn, Protocol, arm
from tests.benchmarks.claims.working import work_through
from tests.benchmarks.claims.world import World
from tests.benchmarks.claims_world import tiny_world

_CELLS = Protocol("tiny", people=2, prompts=1, seeds=(1, 2))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = tiny_world(tmp_path / "world")
    monkeypatch.setattr(World, "at", lambda folder: world)
    return world


def test_what_is_missing_is_trained_and_measured(world: World, tmp_path: Path):
    items = [Drawn(PRIOR, 0, 0, DEFAULT, _CELLS), Drawn(arm("no-layer"), 0, 2, DEFAULT, _CELLS)]
    work_through(tmp_path, items, deadline=float("inf"))
    assert all(Gallery(world, tmp_path).read(item) for item in items)
    work_through(tmp_path, items, deadline=float("inf"))  # nothing left to do


def test_what_another_process_holds_is_waited_for(world: World, tmp_path: Path):
    """The other one gives up without having done it."""
    item = Drawn(PRIOR, 0, 0, DEFAULT, _CELLS)
    lock = tmp_path / "locks" / PRIOR.name
    lock.parent.mkdir(parents=True)
    held = lock.open("w")
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(1.0, held.close).start()
    work_through(tmp_path, [item], deadline=float("inf"))
    assert Gallery(world, tmp_path).read(item)


def test_nothing_new_is_begun_after_the_deadline(world: World, tmp_path: Path):
    item = Drawn(PRIOR, 0, 0, DEFAULT, _CELLS)
    work_through(tmp_path, [item], deadline=time.monotonic() - 1)
    assert Gallery(world, tmp_path).read(item) is None
