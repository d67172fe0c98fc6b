"""`python -m tests.faults.endurance`: the data plane killed at random moments ends where the undisturbed one ends.

Two collections of Paperfolk, one in FFHQ's and one in CelebA's format, go through ingest, caption, segment and shard
on a Ray cluster of two nodes with an S3 server over HTTP: once in peace, once while drivers, actors, a node and the
way to the object store are killed (SIGKILL). Whatever ended is started again by the same command. At the end both
buckets must hold the same catalog and the same bytes under the same names.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from rich.console import Console

from infra.ports import free_ports
from tests.benchmarks.machine import busy_machine

ROOT = Path(__file__).parents[2]
KINDS = ("driver", "actor", "node", "object store")
BUCKETS = ("calm", "killed")
_OUTAGE_SECONDS = 5.0  # of the object store: longer than a client's first retries
_COUNT_SECONDS = 3.0  # between two looks at what is there
_STARTS = 60  # of one command: more than that is no bad luck
_HANGS_AFTER = 2 * 3600.0  # seconds of one start
_KEYS = {"AWS_ACCESS_KEY_ID": "endurance", "AWS_SECRET_ACCESS_KEY": "endurance", "AWS_DEFAULT_REGION": "us-east-1"}
# Ray's clusters ask for a token by default, and its clients send none by default.
_KEYS |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
console = Console(stderr=True)


@dataclass
class Machines:
    """The S3 server, the way to it, and a Ray cluster of two nodes, each in processes of their own."""

    folder: Path
    server_port: int = 0
    front_port: int = 0
    ray_port: int = 0
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.front_port}"

    def start(self) -> None:
        self.server_port, self.front_port, self.ray_port = free_ports(3)
        server = ROOT / "tests" / "infra" / "s3_server.py"
        self._process("server", [sys.executable, str(server), str(self.server_port)])
        _wait(lambda: _answers(self.server_port), "the S3 server")
        self.start_front()
        self._process("head", _ray("--head", f"--port={self.ray_port}", "--include-dashboard=false"))
        _wait(lambda: _answers(self.ray_port), "Ray's head")
        self.start_node()

    def start_front(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("relay.py")), str(self.front_port)]
        self._process("front", [*command, str(self.server_port)])
        _wait(lambda: _answers(self.front_port), "the way to the S3 server")

    def start_node(self) -> None:
        self._process("node", _ray(f"--address=127.0.0.1:{self.ray_port}"))

    def kill(self, name: str) -> None:
        """The process and all that it started, at once."""
        process = self.processes.pop(name)
        family = _family(process.pid)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(family, timeout=10)

    def stop(self) -> None:
        for name in list(self.processes):
            self.kill(name)

    def actors(self) -> list[psutil.Process]:
        """The Ray workers of both nodes that have work."""
        pids = [self.processes[name].pid for name in ("head", "node") if name in self.processes]
        found = [one for pid in pids for one in _family(pid)]
        return [one for one in found if _title(one).startswith("ray::") and "IDLE" not in _title(one)]

    def _process(self, name: str, command: Sequence[str]) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        environment = os.environ | _KEYS | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        environment |= {"RAY_TMPDIR": tempfile.gettempdir()}
        self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


@dataclass
class Killer:
    """Which kinds are killed when which share of all shards is there: all are due, however fast the machine is."""

    machines: Machines
    moments: list[tuple[float, str]]
    shards: int
    stream: random.Random
    done: list[dict[str, Any]] = field(default_factory=list)
    _due: float = 0.0

    def look(self, worked: float, driver: subprocess.Popen[bytes], command: str) -> None:
        """Kill what is due; `worked`: seconds of work so far."""
        if not self.moments or time.monotonic() < self._due:
            return
        share = count_shards(self.machines, "killed") / self.shards
        while self.moments and share >= self.moments[0][0]:
            _, kind = self.moments[0]
            if not self._kill(kind, driver):
                return  # nothing of the kind is there at the moment: at the next look
            self.moments.pop(0)
            self.done.append({"kind": kind, "during": command, "second": round(worked, 1), "share": round(share, 3)})
            console.print(f"  killed at {worked:.0f} s, {share:.0%}, during {command}: [bold]{kind}[/]")
        self._due = time.monotonic() + _COUNT_SECONDS

    def _kill(self, kind: str, driver: subprocess.Popen[bytes]) -> bool:
        if kind == "driver":
            os.killpg(driver.pid, signal.SIGKILL)
        elif kind == "actor":
            if not (actors := self.machines.actors()):
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                self.stream.choice(actors).kill()
        elif kind == "node":
            self.machines.kill("node")
            self.machines.start_node()
        else:
            self.machines.kill("front")
            time.sleep(_OUTAGE_SECONDS)
            self.machines.start_front()
        return True


def main() -> None:
    """Read the command line, run both, compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.endurance", description=__doc__)
    parser.add_argument("--photos", type=int, default=20_000, help="of both collections together")
    parser.add_argument("--kills", type=int, default=10, help="in turn of driver, actor, node and object store")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, default=Path("runs/endurance"), help="where the collections and logs lie")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work, where = options.work.absolute(), busy_machine()
    sources = write_collections(work / "photos", options.photos)
    with tempfile.TemporaryDirectory(prefix="moa-endurance-") as workspaces:
        machines = Machines(work)
        try:
            machines.start()
            _make_buckets(machines)
            calm, calm_seconds = journey(machines, "calm", Path(workspaces), sources, None)
            stream = random.Random(options.seed)
            shares = sorted(stream.uniform(0.02, 0.98) for _ in range(options.kills))
            moments = [(share, KINDS[number % len(KINDS)]) for number, share in enumerate(shares)]
            killer = Killer(machines, moments, count_shards(machines, "calm"), stream)
            killed, killed_seconds = journey(machines, "killed", Path(workspaces), sources, killer)
        finally:
            machines.stop()
    same = calm == killed
    result = {
        "photos": options.photos,
        "machine": where,
        "kills": killer.done,
        "calm_seconds": round(calm_seconds, 1),
        "killed_seconds": round(killed_seconds, 1),
        "counts": calm["counts"],
        "calm": {name: calm[name] for name in ("catalog", "shards", "objects")},
        "killed": {name: killed[name] for name in ("catalog", "shards", "objects")},
        "same": same,
    }
    (work / "endurance.json").write_text(json.dumps(result, indent=1) + "\n")
    page = report(result)
    (work / "endurance.md").write_text(page, "utf-8")
    console.print(page, markup=False, highlight=False)
    if not same or len(killer.done) < options.kills:
        raise SystemExit("The killed run ended elsewhere." if not same else "The run ended before all kills were due.")


def report(result: Mapping[str, Any]) -> str:
    """The result as Markdown, with its date and the machine's name."""
    kills = "\n".join(
        f"| {one['second']} | {one['share']:.0%} | {one['during']} | {one['kind']} |" for one in result["kills"]
    )
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(result["counts"]["refused"].items())) or "none"
    rows = "\n".join(
        f"| {name} | {result[name]['catalog'][:16]} | {result[name]['shards'][:16]} | {result[name]['objects']} | "
        f"{result[f'{name}_seconds']} |"
        for name in BUCKETS
    )
    return f"""# The data plane killed {len(result["kills"])} times, {date.today().isoformat()}

{result["machine"]}. {result["counts"]["in"]} Paperfolk photos, half in FFHQ's and half in CelebA's format, through
ingest, caption, segment and shard on two Ray nodes with an S3 server over HTTP: `python -m tests.faults.endurance
--photos {result["photos"]} --kills {len(result["kills"])}`. Whatever ended was started again by the same command. The
two ended **{"alike, byte for byte" if result["same"] else "DIFFERENTLY"}**.

In {result["counts"]["in"]}, kept {result["counts"]["kept"]}, refused: {refused}.

| run | the catalog's content | all shards' names and digests | shards | seconds of work |
| --- | --- | --- | --- | --- |
{rows}

| second | shards there | during | killed |
| --- | --- | --- | --- |
{kills}
"""


def write_collections(root: Path, photos: int) -> list[str]:
    """Two halves in two formats; their source specifications."""
    from preprocessing.sources import paperfolk

    ffhq, celeba = root / f"ffhq-{photos}", root / f"celeba-{photos}"
    if not (ffhq / "ffhq-dataset-v2.json").is_file():
        console.print(f"Paperfolk: {photos - photos // 2} photos in FFHQ's format")
        paperfolk.write_ffhq(ffhq, photos - photos // 2, seed=21)
    if not (celeba / "Eval" / "list_eval_partition.txt").is_file():
        console.print(f"Paperfolk: {photos // 2} photos in CelebA's format")
        paperfolk.write_celeba(celeba, max(1, photos // 20), 10, seed=21)
    return [f"ffhq:{ffhq}", f"celeba:{celeba}"]


def journey(
    machines: Machines, bucket: str, workspaces: Path, sources: Sequence[str], killer: Killer | None
) -> tuple[dict[str, Any], float]:
    """All stages to their end, however often they are killed; what the bucket holds then, and the seconds of work."""
    console.print(f"[bold]{bucket}[/]")
    options = ["--workspace", str(workspaces / bucket), "--set", f"ray.address=127.0.0.1:{machines.ray_port}"]
    options += ["--set", f"storage.root=s3://{bucket}/data", "--set", f"storage.endpoint_url={machines.endpoint}"]
    commands = [["ingest", "--source", source] for source in sources] + [["caption"], ["segment"], ["shard"]]
    worked = 0.0
    for command in commands:
        for _ in range(1 if killer is None else _STARTS):
            code, seconds = _run([*command, *options], machines.folder / f"{bucket}.log", worked, killer, command[0])
            worked += seconds
            if code == 0:
                break
        else:
            raise SystemExit(f"{' '.join(command)} did not end well: see {machines.folder / bucket}.log.")
        console.print(f"  {' '.join(command)}: ended at {worked:.0f} s")
    return contents(machines, bucket), worked


def _run(arguments: Sequence[str], log: Path, worked: float, killer: Killer | None, name: str) -> tuple[int, float]:
    """Exit code and seconds of one command; the killer looks at it ten times a second."""
    environment = os.environ | _KEYS | {"PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with log.open("ab") as file:
        driver = subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            stdout=file, stderr=file, env=environment, cwd=ROOT, start_new_session=True,
        )  # fmt: skip
        try:
            while driver.poll() is None:
                time.sleep(0.1)
                seconds = time.monotonic() - started
                if seconds > _HANGS_AFTER:
                    raise SystemExit(f"{name} hangs: it has been at it for {seconds:.0f} s.")
                if killer is not None:
                    killer.look(worked + seconds, driver, name)
        finally:  # what a killed driver leaves behind, such as its Prefect server, and a driver that is given up
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    return driver.returncode, time.monotonic() - started


def contents(machines: Machines, bucket: str) -> dict[str, Any]:
    """Digests of what the catalog says and of the objects that it names, each object's own digest checked."""
    from infra.storage import S3Store
    from preprocessing.catalog import Catalog

    with patch.dict(os.environ, _KEYS):
        store = S3Store(bucket, "data", machines.endpoint)
        catalog = Catalog(store)
        stages = sorted({key.split("/")[1] for key in store.list("shards/")})
        rows = sorted((row.stage, row.shard, row.fingerprint, row.sha256, row.object_key)
                      for stage in stages for row in catalog.shards(stage))  # fmt: skip
        for *_, sha256, key in rows:
            if hashlib.sha256(store.get(key)).hexdigest() != sha256:
                raise SystemExit(f"{key} in {bucket} is not what the catalog names.")
        counts = catalog.counts()
        if counts.seen != counts.kept + sum(counts.refused.values()):
            raise SystemExit(f"The counts of {bucket} do not add up: {counts}.")
        return {
            "catalog": catalog.content_digest(),
            "shards": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
            "objects": len(rows),
            "counts": {"in": counts.seen, "kept": counts.kept, "refused": dict(counts.refused)},
        }


def count_shards(machines: Machines, bucket: str) -> int:
    """The shards in the bucket, asked of the server itself: also while the way to it is gone."""
    from infra.storage import S3Store

    with patch.dict(os.environ, _KEYS):
        return len(S3Store(bucket, "data", f"http://127.0.0.1:{machines.server_port}").list("shards/"))


def _make_buckets(machines: Machines) -> None:
    import boto3

    with patch.dict(os.environ, _KEYS):
        client = boto3.client("s3", endpoint_url=machines.endpoint)
        for bucket in BUCKETS:
            client.create_bucket(Bucket=bucket)


def _ray(*arguments: str) -> list[str]:
    ray = Path(sys.executable).with_name("ray")
    limits = ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--object-store-memory=300000000"]
    return [sys.executable, str(ray), "start", *arguments, *limits, "--disable-usage-stats", "--block"]


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _wait(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not start within two minutes.")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
