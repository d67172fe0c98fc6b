"""A retraining on separate hosts over a slow, lossy network, each of which is cut off or killed: the same release.

Ray's head, two of its workers, an S3 server, a Prefect server and whoever retrains are hosts of their own
(`tests/cluster`): network, processes, names and disks. A machine that is killed is started anew, as a service manager
would. `make test-hosts` runs it, as root: without network namespaces it is skipped, and says so.

The S3 server is moto's, which keeps everything in memory. So moto itself stands for the server's disk and lives outside
the hosts; what is on the store's host, and is killed there with every connection and half-sent request, is the way to
it. What was answered before is kept, as of a server that writes before it answers.
"""

import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.registry import Releases
from infra.storage import S3Store
from tests.cluster.hosts import Hosts
from tests.cluster.wire import Wire, why_no_wire
from tests.tiny_world import tiny_changes, write_world

WHY_NOT = why_no_wire()
pytestmark = [
    pytest.mark.hosts,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
    pytest.mark.xdist_group("hosts"),
    pytest.mark.timeout(1500),
]

REPOSITORY = Path(__file__).parents[2]
HEAD, STORE, PREFECT, DRIVER = "head", "store", "prefect", "driver"
NODES = ("node-1", "node-2")
HOSTS = (HEAD, *NODES, STORE, PREFECT, DRIVER)
SLOW_AND_LOSSY = {"delay_ms": 5.0, "jitter_ms": 2.0, "loss": 0.01}
CHANGES = {
    "train.steps": "40",
    "train.batch_size": "6",
    "train.checkpoint_every": "5",
    "train.workers": "2",
    "train.warmup_steps": "0",
}
# What is seen in the store when a retraining is there, in this order.
MOMENTS = {
    "two stages side by side": r"^jobs/moa-caption-.*/progress",
    "joining shards": r"^jobs/moa-shard-.*/progress",
    "early in the training": r"/checkpoints/step-000000(05|1\d)/complete",
    "late in the training": r"/checkpoints/step-000000[23]\d/complete",
    "drawing": r"^jobs/moa-evaluate-.*/progress",
}
CUT_SECONDS = (10.0, 20.0)
FAULTS = ("cut", "kill")
WEIGHTS = ("adapter.safetensors", "adapter_config.json", "metrics.json")


class Cluster:
    """The hosts with what belongs on each of them."""

    def __init__(self, hosts: Hosts, world: Path, s3_address: str) -> None:
        self.hosts, self.wire, self._world, self._s3 = hosts, hosts.wire, world, s3_address
        self.bucket = f"hosts-{secrets.token_hex(4)}"
        boto3.client("s3", endpoint_url=s3_address).create_bucket(Bucket=self.bucket)
        self._way = subprocess.Popen(self._relay(str(hosts.base / "s3"), s3_address.rpartition("/")[2]))

    def start(self) -> None:
        """All but the driver."""
        address = self.wire.address
        ray = [sys.executable, str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
        ray += ["--object-store-memory=80000000"]
        head = ["--head", "--num-cpus=0", f"--node-ip-address={address(HEAD)}", "--port=6379"]
        head += ["--include-dashboard=true", "--dashboard-host=0.0.0.0", "--dashboard-port=8265"]
        self.hosts.start(HEAD, [*ray, *head])
        for node in NODES:
            joins = [f"--address={address(HEAD)}:6379", f"--node-ip-address={address(node)}", "--num-cpus=2"]
            # As a service manager does: a node that has lost its head ends.
            self.hosts.start(node, ["sh", "-c", 'while :; do "$@"; sleep 1; done', "sh", *ray, *joins])
        self.hosts.start(STORE, self._relay(f"{address(STORE)}:9000", str(self.hosts.base / "s3")))
        server = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
        server += ["--host", address(PREFECT), "--port", "4200", "--log-level", "warning"]
        database = f"sqlite+aiosqlite:///{self.hosts.own}/prefect.db"
        self.hosts.start(PREFECT, server, {"PREFECT_API_DATABASE_CONNECTION_URL": database})
        for host, port in ((STORE, 9000), (HEAD, 8265), (PREFECT, 4200)):
            self.listens(host, port)

    def stop(self) -> None:
        self._way.kill()
        self._way.wait()

    def listens(self, host: str, port: int) -> None:
        """Wait for it."""

        def answers() -> bool:
            with self.wire.socket_on(DRIVER) as probe:
                probe.settimeout(5)
                return probe.connect_ex((self.wire.address(host), port)) == 0

        self.until(answers, [host])

    def until(self, found: Callable[[], Any], hosts: Sequence[str]) -> Any:
        """Wait for a true value, as long as what runs on these hosts goes on."""
        deadline = time.monotonic() + 600
        while not (answer := found()):
            said = "\n".join(f"== {host}\n{self.hosts.said(host)[-6000:]}" for host in {*hosts, DRIVER})
            assert time.monotonic() < deadline and not any(self.hosts.ended(host) is not None for host in hosts), said
            time.sleep(0.1)
        return answer

    def _relay(self, here: str, server: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tests" / "faults" / "relay.py"), here, server]


class Retraining:
    """`moa retrain` on the driver's host, into a store of its own."""

    def __init__(self, cluster: Cluster, name: str, world: Path, s3_address: str) -> None:
        self.cluster, self.name = cluster, name
        self.store = S3Store(cluster.bucket, name, s3_address)  # not by the wire: nobody notices who looks
        address = cluster.wire.address
        changes = {
            **tiny_changes(world),
            **CHANGES,
            "ray.address": f"http://{address(HEAD)}:8265",
            "storage.root": f"s3://{cluster.bucket}/{name}",
            "storage.endpoint_url": f"http://{address(STORE)}:9000",
        }
        words = [sys.executable, "-m", "flows.cli", "retrain", "--workspace", f"{cluster.hosts.own}/{name}"]
        self._command = [*words, *(part for key, value in changes.items() for part in ("--set", f"{key}={value}"))]
        self._said_before = len(cluster.hosts.said(DRIVER))

    def start(self) -> None:
        api = f"http://{self.cluster.wire.address(PREFECT)}:4200/api"
        self.cluster.hosts.start(DRIVER, self._command, {"PREFECT_API_URL": api})

    @property
    def said(self) -> str:
        return self.cluster.hosts.said(DRIVER)[self._said_before :]

    def at(self, moment: str) -> None:
        """Wait until the stage is at work."""
        wanted = re.compile(MOMENTS[moment])
        self.cluster.until(lambda: any(map(wanted.search, self.store.list())), [DRIVER])

    def goes_well(self) -> dict[str, str]:
        """Wait for the good end; the digests of what was released, but for the account of how it came about."""
        hosts = self.cluster.hosts
        self.cluster.until(lambda: hosts.ended(DRIVER) is not None, [])
        assert hosts.ended(DRIVER) == 0, self.said[-6000:]
        releases = Releases(self.store)
        (release,) = releases.all()
        assert releases.current("production") == release
        files = releases.manifest(release).files
        return {file.name: file.content.sha256 for file in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"), photos=12)


@pytest.fixture(scope="module")
def cluster(world: Path, s3_address: str) -> Iterator[Cluster]:
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment |= {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    with Wire(HOSTS) as wire, Hosts(wire, environment) as hosts:
        cluster = Cluster(hosts, world, s3_address)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, world: Path, s3_address: str) -> dict[str, str]:
    """What is released where nothing happens and the wire is perfect."""
    retraining = Retraining(cluster, "calm", world, s3_address)
    retraining.start()
    return retraining.goes_well()


@pytest.mark.parametrize("host", HOSTS)
def test_the_release_is_the_same_whoever_is_cut_off_and_killed(
    host: str,
    undisturbed: dict[str, str],
    cluster: Cluster,
    world: Path,
    s3_address: str,
    chance: random.Random,
) -> None:
    """One retraining with both, in any order, at two moments of it."""
    cluster.wire.quality(**SLOW_AND_LOSSY)
    before = cluster.wire.count()
    retraining = Retraining(cluster, host, world, s3_address)
    retraining.start()
    moments = sorted(chance.sample(list(MOMENTS), 2), key=list(MOMENTS).index)
    for moment, fault in zip(moments, chance.sample(FAULTS, 2), strict=True):
        retraining.at(moment)
        print(f"{fault} {host}: {moment}")
        if fault == "kill":
            cluster.hosts.kill(host)
            cluster.hosts.start_again(host)
        else:
            cluster.wire.cut(host)
            time.sleep(chance.uniform(*CUT_SECONDS))  # the fault itself
            cluster.wire.mend(host)
    released = retraining.goes_well()
    assert {name: released[name] for name in WEIGHTS} == {name: undisturbed[name] for name in WEIGHTS}
    count = cluster.wire.count()
    assert count["lost"] > before["lost"] and count["cut"] > before["cut"]
