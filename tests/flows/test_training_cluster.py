"""Workers on two real Ray nodes: what they ask for, where they land, what they are told, and whose disk is whose."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows.run import Run
from flows.session import prepare_environment
from flows.train import fit, plan_training
from flows.training_cluster import (
    check_gpus,
    check_room,
    check_store,
    on_gpus,
    scaling,
    torch_config,
    worker_environment,
    worker_resources,
)
from infra.errors import UserError
from infra.ray_session import ONE_MACHINE, ray_session
from infra.settings import Settings, load_settings
from infra.storage import DirectoryStore
from tests.faults.training_runs import prepare
from tests.tiny_world import tiny_ray

CPUS = 4  # of each node


def _settings(workspace: Path, **changes: str) -> Settings:
    return load_settings("demo", workspace, {f"train.{name}": value for name, value in changes.items()})


class DiskOfEachMachine(DirectoryStore):
    """A folder of the same name on every machine, which is another one on each."""

    def _path(self, key: str) -> Path:
        import ray

        return self.root / ray.get_runtime_context().get_node_id() / key


@contextmanager
def _cluster(nodes: int, **more: Any) -> Iterator[str]:
    """Its address."""
    from ray.cluster_utils import Cluster

    prepare_environment()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "PYTHONPATH", str(Path(__file__).parents[2]))
        node: dict[str, Any] = {"num_cpus": CPUS, "object_store_memory": 80 * 10**6, **more}
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            for _ in range(1, nodes):
                cluster.add_node(**node)
            cluster.wait_for_nodes()
            yield cluster.address
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """The address of a cluster of two."""
    with _cluster(2) as address:
        yield address


@pytest.fixture
def both(nodes: str) -> Iterator[None]:
    with ray_session(tiny_ray(nodes, 1)):
        yield


def test_a_worker_asks_for_its_loaders_too(tmp_path: Path) -> None:
    changes = {"loader_workers": "3", "min_workers": "1", "placement": "spread", "gpus_per_worker": "1"}
    options = _settings(tmp_path, **changes).train
    assert worker_resources(options, gpu=False) == {"CPU": 4}
    assert worker_resources(options, gpu=True) == {"CPU": 4, "GPU": 1}
    config = scaling(options, gpu=True)
    assert (config.num_workers, config.use_gpu, config.placement_strategy) == ((1, 2), True, "SPREAD")
    plain = scaling(_settings(tmp_path).train, gpu=False)
    assert plain.elastic_resize_monitor_interval_s == _settings(tmp_path).train.resize_seconds
    assert (plain.num_workers, plain.use_gpu, plain.placement_strategy) == (2, False, "PACK")


def test_collectives_and_their_environment(tmp_path: Path) -> None:
    auto = torch_config(_settings(tmp_path, hang_seconds="30").train, gpu=True)
    assert auto.backend is None and auto.timeout_s == 90
    gloo = _settings(tmp_path, collectives="gloo")
    assert torch_config(gloo.train, gpu=True).backend == "gloo"
    with pytest.raises(UserError, match="NCCL works between GPUs"):
        torch_config(_settings(tmp_path, collectives="nccl").train, gpu=False)
    with pytest.raises(UserError, match="gloo gathers no weights"):
        torch_config(_settings(tmp_path, collectives="gloo", sharding="fsdp").train, gpu=True)
    told = _settings(tmp_path, nccl_env='["NCCL_SOCKET_IFNAME=eth0", "NCCL_IB_HCA==mlx5_0:1"]').train
    network = {"NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_HCA": "=mlx5_0:1"}
    assert worker_environment(told, hide_gpus=False) == {"env_vars": network}
    assert worker_environment(told, hide_gpus=True) == {"env_vars": network | {"CUDA_VISIBLE_DEVICES": ""}}
    assert worker_environment(gloo.train, hide_gpus=False) == {}


def _note(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    from torch import distributed

    told = {
        "node": ray.get_runtime_context().get_node_id(),
        "cpus": ray.get_runtime_context().get_assigned_resources()["CPU"],
        "backend": distributed.get_backend(),
        "told": os.environ.get("NCCL_SOCKET_IFNAME"),
    }
    rank = ray.train.get_context().get_world_rank()
    Path(config["folder"], f"{rank}.json").write_text(json.dumps(told))


@pytest.mark.timeout(600)
def test_workers_land_where_they_should_and_know_the_network(both: None, tmp_path: Path) -> None:
    from ray.train import RunConfig
    from ray.train.torch import TorchTrainer

    changes = {"placement": "spread", "loader_workers": "1", "nccl_env": '["NCCL_SOCKET_IFNAME=lo"]'}
    options = _settings(tmp_path, **changes).train
    TorchTrainer(
        _note,
        train_loop_config={"folder": str(tmp_path)},
        torch_config=torch_config(options, gpu=False),
        scaling_config=scaling(options, gpu=False),
        run_config=RunConfig(
            name="x", storage_path=str(tmp_path / "ray"), worker_runtime_env=worker_environment(options, hide_gpus=True)
        ),
    ).fit()
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert len({one["node"] for one in found}) == 2, "one machine has room for both"
    assert all((one["cpus"], one["backend"], one["told"]) == (2, "gloo", "lo") for one in found)


def test_gpus_are_waited_for_in_a_cluster_alone(both: None, nodes: str, tmp_path: Path) -> None:
    """Neither machine has one: those that have may still come, but not into a Ray of this machine."""
    asks, cpus = _settings(tmp_path, gpus_per_worker="1"), _settings(tmp_path, gpus_per_worker="0")
    cluster = [one.model_copy(update={"ray": one.ray.model_copy(update={"address": nodes})}) for one in (asks, cpus)]
    assert [on_gpus(one) for one in (*cluster, asks, cpus)] == [True, False, False, False]
    assert [check_gpus(one, on_gpus(one)) != "" for one in (*cluster, asks, cpus)] == [False, False, True, False]
    assert "on CPUs: 2 workers want a GPU each, and this machine has 0" in check_gpus(asks, False)
    said = check_room(cluster[0], True)
    assert "1 GPU each" in said and "0 find room; machines are waited for" in said
    assert "--set train.gpus_per_worker=0" in said and check_room(cluster[1], False) == ""


def test_room_is_counted_machine_by_machine(both: None, nodes: str, tmp_path: Path) -> None:
    def said(**changes: str) -> str:
        settings = _settings(tmp_path, **{"batch_size": "99", **changes})
        return check_room(
            settings.model_copy(update={"ray": settings.ray.model_copy(update={"address": nodes})}), False
        )

    assert said(workers="8") == said(workers="2", loader_workers=str(CPUS - 1)) == ""
    # Three CPUs each: one in each machine, although eight CPUs would be enough for two and a half.
    short = said(workers="3", min_workers="2", loader_workers="2")
    assert "of 3 workers with 3 CPUs each" in short and "2 find room; it begins with them" in short
    assert said(workers="9").endswith("8 find room; machines are waited for")
    with pytest.raises(UserError, match=r"8 find room: raise ray.num_cpus \(4\), or lower train.loader_workers"):
        check_room(_settings(tmp_path, workers="9"), False)  # a Ray of its own cannot grow


def test_the_ray_of_one_machine_waits_for_nobody(tmp_path: Path) -> None:
    """That of `moa up` has an address, as a cluster has, and cannot grow."""
    with _cluster(1, labels={ONE_MACHINE: "true"}) as address:
        ray = tiny_ray(address, CPUS)
        with ray_session(ray):
            asks = _settings(tmp_path, gpus_per_worker="1").model_copy(update={"ray": ray})
            assert not on_gpus(asks) and "this machine has 0" in check_gpus(asks, False)
            many = _settings(tmp_path, workers="9").model_copy(update={"ray": ray})
            with pytest.raises(UserError, match=r"4 find room: raise ray.num_cpus \(4\) and start moa up anew, or"):
                check_room(many, False)


@pytest.mark.timeout(600)
def test_a_store_that_others_do_not_see_is_refused_before_the_training(both: None, tmp_path: Path) -> None:
    settings = prepare(tmp_path, "alone", {"train.steps": "2"})
    shared = DirectoryStore(tmp_path / "shared")
    check_store(shared, settings, "run")
    assert shared.list() == []

    run = Run(settings)
    plan = plan_training(run, from_scratch=True) | {"damaged": []}
    own = DiskOfEachMachine(tmp_path / "own")
    with pytest.raises(UserError, match=r"does not see what this one writes to .*, and checkpoints would be lost"):
        check_store(own, settings, plan["run_id"])
    assert [path for path in (tmp_path / "own").rglob("*") if path.is_file()] == []
    shards = run.training_shards()
    run.__dict__["store"] = own
    run.training_shards = lambda version=None: shards  # type: ignore[method-assign]
    with pytest.raises(UserError, match=f"{settings.store_root}.*--set storage.root=s3://bucket/prefix"):
        fit(run, plan)
    assert not (settings.workspace / "store" / "runs").exists(), "nothing was begun"


def test_a_machine_that_cannot_use_the_store_says_why(both: None, tmp_path: Path) -> None:
    class OnlyHere(DirectoryStore):
        def get(self, key: str) -> bytes:
            raise UserError("The store s3://x/y cannot be used (no credentials).")

    settings = _settings(tmp_path)
    with pytest.raises(UserError, match=r"The machine .* cannot use the store. The store s3://x/y cannot be used"):
        check_store(OnlyHere(tmp_path / "store"), settings, "run")
    assert DirectoryStore(tmp_path / "store").list() == []
