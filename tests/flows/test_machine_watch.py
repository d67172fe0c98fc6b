"""Too few machines are told once, until progress comes again."""

from collections.abc import Iterator

import pytest

from flows.machine_watch import MachineWatch
from infra.ray_session import ray_session
from infra.settings import load_settings


@pytest.fixture(scope="module")
def one_cpu() -> Iterator[None]:
    settings = load_settings("demo", None, {"ray.num_cpus": "1", "ray.object_store_mb": "80"})
    with ray_session(settings.ray):
        yield


def test_too_few_machines_are_told_once(one_cpu: None) -> None:
    watch = MachineWatch(2, gpus=False, seconds=0.0)
    assert "room for 1 of 2 workers" in watch.look(None)
    assert watch.look(None) == ""
    assert "room for 1 of 2" in watch.look({"step": 10})  # progress, and then none again
    assert MachineWatch(1, gpus=False, seconds=0.0).look(None) == ""
    assert MachineWatch(2, gpus=False, seconds=3600.0).look(None) == ""
    without = MachineWatch(1, gpus=True, seconds=0.0).look(None)
    assert "room for 0 of 1" in without and "--set train.gpus_per_worker=0" in without
    assert "gpus_per_worker" not in MachineWatch(2, gpus=False, seconds=0.0).look(None)
