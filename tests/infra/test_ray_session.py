"""Shards over actors: lazily in, one by one out, and whatever dies costs what it had in its hands."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayError

from infra import ray_session as ray_session_module
from infra.errors import UserError
from infra.ray_session import StagedWorker, map_shards, ray_session
from infra.settings import load_settings

LOCAL = load_settings("demo").ray.model_copy(update={"address": "", "num_cpus": 2, "object_store_mb": 80})


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    os.environ.setdefault("RAY_worker_niceness", "0")  # as `flows.session` does
    with ray_session(LOCAL), ray_session(LOCAL):  # the inner one joins the outer one
        yield


OPEN_PORTS = """
import psutil
from infra.ray_session import ray_session
from infra.settings import load_settings
from tests.open_ports import open_ports, reached_from_outside
with ray_session(load_settings("demo").ray.model_copy(update={"address": "", "num_cpus": 1, "object_store_mb": 80})):
    own = psutil.Process()
    ports = open_ports([own, *own.children(recursive=True)])
print(len(ports), reached_from_outside(ports))
"""


def test_a_ray_of_this_machine_listens_to_nobody_else() -> None:
    """In a process of its own, for Ray reads the setting when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", OPEN_PORTS], capture_output=True, text=True, env=environment)
    count, _, outside = done.stdout.strip().rpartition("\n")[2].partition(" ")
    assert int(count) > 3 and outside == "[]", done.stdout + done.stderr


NOT_UP = """
import sys
import psutil
from ray._private import services
from infra.errors import UserError
from infra.ray_session import ray_session
from infra.settings import load_settings
look, left = services.get_node, int(sys.argv[1])
def get_node(*of):
    global left
    left -= 1
    if left >= 0:
        raise Exception("The current node timed out during startup. This could happen because some of the raylet ...")
    return look(*of)
services.get_node = get_node
try:
    small = {"address": "", "num_cpus": 1, "object_store_mb": 80}
    with ray_session(load_settings("demo").ray.model_copy(update=small)):
        print("up beside", end=" ")
        print(sum(process.name() == "raylet" for process in psutil.Process().children(recursive=True)) - 1)
except UserError as error:
    print(error, end=" ")
    psutil.wait_procs(psutil.Process().children(recursive=True), timeout=30)
    print(*(process.name() for process in psutil.Process().children(recursive=True)))
"""


@pytest.mark.parametrize(
    "failures, said", [("2", "up beside 0"), ("3", "Ray did not come up on this machine in 3 tries: see what keeps")]
)
def test_a_ray_that_does_not_come_up_is_started_again(failures: str, said: str) -> None:
    """And nothing is left of it: real processes, which Ray is told have not answered."""
    done = subprocess.run([sys.executable, "-c", NOT_UP, failures], capture_output=True, text=True)
    assert done.stdout.startswith(said), done.stdout + done.stderr
    assert done.stdout.strip().endswith((" beside 0", "start the same again.")), "and no process beside"


BESIDE_A_DEAD_ONE = """
import shutil, subprocess, sys, time
import psutil
from infra.ray_session import _raylet, ray_session
from infra.settings import load_settings
dead = subprocess.Popen([shutil.copy(shutil.which("true"), sys.argv[1])])
while psutil.Process(dead.pid).status() != psutil.STATUS_ZOMBIE:
    time.sleep(0.01)
with ray_session(load_settings("demo").ray.model_copy(update={"address": "", "num_cpus": 1, "object_store_mb": 80})):
    found = _raylet()
    print(found is not None and found.pid != dead.pid)
"""


def test_the_own_raylet_is_found_beside_one_that_has_just_died(tmp_path: Path) -> None:
    """As on a machine on which another Ray ends."""
    command = [sys.executable, "-c", BESIDE_A_DEAD_ONE, str(tmp_path / "raylet")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.strip().endswith("True"), done.stdout + done.stderr


class Doubling:
    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.calls = 0

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        if item["number"] < 0:
            raise UserError("A number is negative: send it elsewhere.")
        return {**item, "number": item["number"] * self.factor, "calls": self.calls}


class Dying:
    """Kills its process at the items that say so, the first time that it meets them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        with (self.folder / str(item["number"])).open("a") as file:
            file.write("x")
        if item.get("kills") and (self.folder / str(item["number"])).read_text() == "x":
            os._exit(1)
        time.sleep(item.get("seconds", 0.0))
        return {"number": item["number"]}


class InSteps(StagedWorker):
    """Says at each step who else is at work."""

    def __init__(self) -> None:
        self.lock, self.working, self.under_way = threading.Lock(), 0, 0

    def fetch(self, item: dict[str, Any]) -> int:
        with self.lock:
            self.under_way += 1
        time.sleep(0.05)
        return item["number"] * 10

    def work(self, item: dict[str, Any], fetched: int) -> tuple[int, int, int]:
        with self.lock:
            self.working += 1
            seen = self.working, self.under_way
        time.sleep(0.05)
        with self.lock:
            self.working -= 1
        return (fetched, *seen)

    def put_away(self, item: dict[str, Any], made: tuple[int, int, int]) -> dict[str, Any]:
        with self.lock:
            self.under_way -= 1
        return {"number": made[0], "working": made[1], "under_way": made[2]}


def test_a_cluster_that_does_not_answer_is_named() -> None:
    # First in this file: inside a session nothing is asked.
    with (
        pytest.raises(UserError, match="127.0.0.1:1.*ray.address"),
        ray_session(LOCAL.model_copy(update={"address": "127.0.0.1:1"})),
    ):
        pass


def test_actors_keep_their_state_and_values_keep_their_types(session: None) -> None:
    items = [{"number": n, "none": None if n % 2 else "x", "rows": [{"a": []}] * n, "raw": b"\0"} for n in range(6)]
    assert list(map_shards(Doubling, [], 2, (2,))) == list(map_shards(Doubling, iter([]), 2, (2,))) == []
    results = sorted(map_shards(Doubling, items, 2, (2,)), key=lambda result: result["number"])
    assert [result["number"] for result in results] == [0, 2, 4, 6, 8, 10]
    assert [{**result, "number": result["number"] // 2} | {"calls": 0} for result in results] == [
        {**item, "calls": 0} for item in items
    ]
    assert max(result["calls"] for result in results) >= 3  # two actors for six items, not one actor per item

    with pytest.raises(UserError, match="A number is negative: send it elsewhere"):
        list(map_shards(Doubling, [{"number": -1}], 1, (2,)))


def test_items_are_made_as_they_are_needed_and_results_wait_for_nobody_in_heaps(session: None) -> None:
    """Many tiny items travel in batches; nobody takes results for a while, and then no items are made either."""
    made = 0

    def items() -> Iterator[dict[str, Any]]:
        nonlocal made
        for number in range(3000):
            made += 1
            yield {"number": number}

    results = map_shards(Doubling, items(), 2, (2,), total=3000)
    first = next(results)
    time.sleep(1.0)
    assert made <= 8  # the window, of single items while nothing is known of their speed
    rest = list(results)
    assert sorted(result["number"] for result in (first, *rest)) == [2 * number for number in range(3000)]
    unknown = map_shards(Doubling, ({"number": number} for number in range(30)), 2, (2,))
    assert sorted(result["number"] for result in unknown) == [2 * number for number in range(30)]


def test_a_worker_that_is_killed_costs_what_it_had_in_its_hands(session: None, tmp_path: Path) -> None:
    items = [{"number": number, "kills": number in (3, 40)} for number in range(60)]
    results = Counter(result["number"] for result in map_shards(Dying, items, 2, (tmp_path,)))
    assert results == Counter(range(60))  # nothing lost, nothing twice
    assert (tmp_path / "3").read_text() == (tmp_path / "40").read_text() == "xx"


def test_calls_share_one_actor_and_its_loss_costs_the_call_that_it_hits(session: None) -> None:
    items = [{"number": number} for number in range(4)]
    held = ray_session_module._queues
    assert len(list(map_shards(Doubling, items, 1, (2,)))) == 4
    shared = held.of_this_session({})
    results = map_shards(Doubling, items, 1, (2,))
    assert next(results)["number"] in (0, 2, 4, 6)
    assert held.of_this_session({}) is shared and len(list(results)) == 3
    ray.kill(shared)
    with pytest.raises(RayError):
        list(map_shards(Doubling, items, 1, (2,)))
    assert len(list(map_shards(Doubling, items, 1, (2,)))) == 4


def test_fetching_and_putting_away_run_beside_the_work(session: None) -> None:
    assert InSteps()({"number": 1})["number"] == 10
    results = list(map_shards(InSteps, [{"number": number} for number in range(12)], 1, ()))
    assert sorted(result["number"] for result in results) == [10 * number for number in range(12)]
    assert {result["working"] for result in results} == {1}  # one at a time has the model
    assert max(result["under_way"] for result in results) == 2  # the next one was being fetched
