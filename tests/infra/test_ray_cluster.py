"""Two Ray nodes, of which one is lost in the middle of a stage: the same code, the same results."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infra.ray_session import map_shards, ray_session
from infra.settings import load_settings
from tests.ray_head import RayHead

# A stage whose actor takes its time.
DRIVER = """
import sys, time
from infra.ray_session import map_shards, ray_session
from infra.settings import load_settings

class Slow:
    def __init__(self, note):
        self.note = note

    def __call__(self, item):
        open(self.note, "w").close()
        time.sleep(3600)

with ray_session(load_settings("demo").ray.model_copy(update={"address": sys.argv[1]})):
    list(map_shards(Slow, [{"number": 1}], 1, (sys.argv[2],)))
"""


class Noting:
    """Notes in which node it did an item, and how often it was begun."""

    def __init__(self, folder: Path) -> None:
        import ray

        self.folder, self.node = folder, ray.get_runtime_context().get_node_id()

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        with (self.folder / str(item["number"])).open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return {"number": item["number"], "node": self.node}


@pytest.mark.timeout(600)  # 40 s on an idle machine
def test_a_lost_node_costs_its_shards_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setitem(os.environ, "RAY_worker_niceness", "0")
    monkeypatch.setitem(os.environ, "PYTHONPATH", str(Path(__file__).parents[2]))
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 80 * 10**6, "include_dashboard": False},
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80 * 10**6)
        cluster.wait_for_nodes()
        settings = load_settings("demo").ray.model_copy(
            update={"address": cluster.address, "num_cpus": 1, "object_store_mb": 80}
        )
        with ray_session(settings):
            import ray

            driver = ray.get_runtime_context().get_node_id()
            results: list[dict[str, Any]] = []
            killed = False
            items = ({"number": number} for number in range(60))
            for result in map_shards(Noting, items, 2, (tmp_path,), total=60):
                results.append(result)
                if not killed and len({one["node"] for one in results}) == 2:
                    cluster.remove_node(second, allow_graceful=False)  # its processes are killed
                    killed = True
        assert killed
        assert Counter(result["number"] for result in results) == Counter(range(60))  # nothing lost, nothing twice
        assert {result["node"] for result in results[-10:]} == {driver}
        again = [path for path in tmp_path.iterdir() if path.read_text() != "x"]
        assert len(again) <= 20  # two batches: what the node had in its hands and what waited for it
    finally:
        cluster.shutdown()


def test_a_driver_whose_ray_died_ends_though_another_one_came_up_in_its_place(tmp_path: Path) -> None:
    """As `moa up` starts it again. By the moment, Ray's own driver meets an error there, or waits on and on."""
    note = tmp_path / "at-work"
    with RayHead(tmp_path / "head.log") as head:
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, f"127.0.0.1:{head.ports['gcs']}", str(note)],
            stderr=subprocess.PIPE, text=True,
            env=os.environ | head.access | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not note.exists():
                assert driver.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            head.kill()
            head.start()
            said = driver.communicate(timeout=120)[1]
        finally:
            driver.kill()
        assert driver.returncode == 75 and "died, and with it what ran there" in said, said
