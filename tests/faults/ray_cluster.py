"""A Ray cluster of several nodes on this machine, whose nodes can be killed as a machine dies."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

_MEMORY = {"object_store_memory": 80 * 10**6}


class RayCluster:
    """`nodes` of one CPU each; the driver is to attach to the first one's `address`. `head_cpus` 0: no worker there."""

    def __init__(self, nodes: int, head_cpus: int = 1) -> None:
        self.nodes, self._head_cpus = nodes, head_cpus

    def __enter__(self) -> "RayCluster":
        from ray.cluster_utils import Cluster

        self._temporary = tempfile.mkdtemp(prefix="moa-")
        self._environment = pytest.MonkeyPatch()
        self._environment.setenv("RAY_TMPDIR", self._temporary)
        self._environment.setenv("RAY_worker_niceness", "0")
        self._environment.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        head = {"num_cpus": self._head_cpus, "include_dashboard": False, **_MEMORY}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._others: dict[str, Any] = {}
        self._pods: list[subprocess.Popen[bytes]] = []
        for _ in range(self.nodes - 1):
            self.add_node()
        return self

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add_node(self) -> None:
        """One more machine."""
        node = self._cluster.add_node(num_cpus=1, **_MEMORY)
        self._others[node.node_id] = node

    def add_pod(self, announced_seconds: int) -> subprocess.Popen[bytes]:
        """One more machine, by the command that KubeRay gives a worker's pod; SIGTERM ends it as the kubelet does."""
        ray = Path(sys.executable).with_name("ray")
        start = (
            f"{sys.executable} {ray} start --address={self.address} --block --num-cpus=1 --object-store-memory=80000000"
        )
        told = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(announced_seconds)}
        pod = subprocess.Popen(
            ["/bin/bash", "-lc", "--", f"ulimit -n 4096; {start} --disable-usage-stats"],
            env=os.environ | told,
        )
        self._pods.append(pod)
        wanted, ends = self._alive() + 1, time.monotonic() + 240
        while self._alive() < wanted:
            assert pod.poll() is None and time.monotonic() < ends, "the pod does not join"
            time.sleep(0.2)
        return pod

    def _alive(self) -> int:
        return sum(node["Alive"] for node in self._cluster.global_state.node_table())

    def __contains__(self, node: str) -> bool:
        """Whether a node of that name can be killed: the first one, the driver's, cannot."""
        return node in self._others

    def kill_node(self, name: str) -> None:
        """SIGKILL to all that runs on a node."""
        node = self._others.pop(name)
        family = []
        for processes in node.all_processes.values():
            for one in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    family += psutil.Process(one.process.pid).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def announce(self, name: str, seconds: int) -> None:
        """Let Ray tell the node's workers that it will be taken away, as autoscalers do with spot machines."""
        words = ["drain-node", "--address", self.address, "--node-id", name]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "wanted elsewhere"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *words], check=True, capture_output=True)

    def __exit__(self, *_: object) -> None:
        for pod in self._pods:
            with contextlib.suppress(psutil.NoSuchProcess):
                family = psutil.Process(pod.pid).children(recursive=True)
                pod.kill()
                for process in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
            pod.wait()
        self._cluster.shutdown()
        self._environment.undo()
        shutil.rmtree(self._temporary, ignore_errors=True)
