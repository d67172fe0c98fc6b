"""What a release costs over the bare transfer of its bytes: `make bench-release`.

A file of 1 GB goes to an S3 server and comes back, once as boto3 does it by itself and once as a release: described,
content-addressed and resumable on its way there, verified and cached on its way back. Turn and turn about, each once
first and once second and on an empty bucket: a server in memory is slower with what it holds. Each ratio is bare ÷ ours
by the clock, the median of the rounds, so it wants a quiet machine. The processor time of the client, which others
disturb less, stands beside it. Without --endpoint the server is moto's, in a process of its own: it is
written in Python, and slow. Before that: what the evaluation that a release needs costs over its own drawing.
"""

import argparse
import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import boto3

from infra.pulling import pull
from infra.registry import Releases
from infra.storage import S3Store
from tests.benchmarks.costs import Cost, console, cost_of
from tests.benchmarks.evaluation_overhead import measure_overhead
from tests.benchmarks.machine import busy_machine

MODEL = "moa"
GOALS = {"pull_ratio": "≥ 0.9", "publish_ratio": "≥ 0.9", "repull_seconds": "≤ 1", "evaluation_overhead": "≤ 0.05"}


@contextmanager
def own_server() -> Iterator[str]:
    """moto's, several requests at a time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def measure(endpoint: str, folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """The costs of each work, round by round, and the ratios."""
    client, bucket = boto3.client("s3", endpoint_url=endpoint), f"bench-{secrets.token_hex(6)}"
    client.create_bucket(Bucket=bucket)
    store, address = S3Store(bucket, "registry", endpoint), f"s3://{bucket}/registry/{MODEL}"
    store.list()  # connected
    weights = folder / "weights"
    costs: dict[str, list[Cost]] = {}

    def timed(name: str, work: Any) -> None:
        costs.setdefault(name, []).append(cost_of(work))
        console.print(f"  {name:<16} {costs[name][-1].wall:6.2f} s, of a core {costs[name][-1].cpu:.2f} s")

    def bare(number: int) -> None:
        timed("upload", lambda: client.upload_file(str(weights), bucket, "bare"))
        timed("download", lambda: client.download_file(bucket, "bare", str(folder / "bare")))
        (folder / "bare").unlink()
        client.delete_object(Bucket=bucket, Key="bare")

    def ours(number: int) -> None:
        timed("publish", lambda: Releases(store, MODEL).publish({"adapter.bin": weights}, {}))
        os.environ["MOA_CACHE"] = str(folder / "cache")
        timed("pull", lambda: pull(f"{address}@{number}", folder / "first", endpoint_url=endpoint))
        timed("pull again", lambda: pull(f"{address}@{number}", folder / "second", endpoint_url=endpoint))
        timed("moa pull again", lambda: _command(f"{address}@{number}", folder / "third", endpoint))
        for name in ("cache", "first", "second", "third"):
            shutil.rmtree(folder / name)
        for key in store.list("blobs/"):
            store.delete(key)

    try:
        for number in range(1, rounds + 1):
            console.print(f"round {number} of {rounds}")
            with weights.open("wb") as file:
                for _ in range(megabytes):
                    file.write(os.urandom(1_000_000))
            for work in (bare, ours) if number % 2 else (ours, bare):
                work(number)
            weights.unlink()
    finally:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
        client.delete_bucket(Bucket=bucket)
    seconds = {name: statistics.median(cost.wall for cost in all_) for name, all_ in costs.items()}
    return {
        "pull_ratio": _ratio(costs, "download", "pull", "wall"),
        "publish_ratio": _ratio(costs, "upload", "publish", "wall"),
        "repull_seconds": seconds["moa pull again"],
        "pull_cpu_ratio": _ratio(costs, "download", "pull", "cpu"),
        "publish_cpu_ratio": _ratio(costs, "upload", "publish", "cpu"),
        "seconds": seconds,
        "cpu_seconds": {name: statistics.median(cost.cpu for cost in all_) for name, all_ in costs.items()},
        "pull_ratios": [a.wall / b.wall for a, b in zip(costs["download"], costs["pull"], strict=True)],
        "publish_ratios": [a.wall / b.wall for a, b in zip(costs["upload"], costs["publish"], strict=True)],
    }


def _ratio(costs: dict[str, list[Cost]], bare: str, ours: str, what: str) -> float:
    pairs = zip(costs[bare], costs[ours], strict=True)
    return statistics.median(getattr(one, what) / getattr(other, what) for one, other in pairs)


def _command(address: str, folder: Path, endpoint: str) -> None:
    command = [sys.executable, "-m", "flows.cli", "pull", address, str(folder), "--quiet"]
    subprocess.run(command, check=True, env={**os.environ, "AWS_ENDPOINT_URL_S3": endpoint}, stdout=subprocess.DEVNULL)


def table_of(numbers: dict[str, Any]) -> str:
    """The numbers as Markdown, goals beside them."""
    seconds, cpu, megabytes = numbers["seconds"], numbers["cpu_seconds"], numbers["megabytes"]

    def pair(bare: str, ours: str) -> str:
        each = ", ".join(f"{ratio:.2f}" for ratio in numbers[f"{ours}_ratios"])
        speed = f"{megabytes / seconds[bare]:.0f} and {megabytes / seconds[ours]:.0f} MB/s"
        cores = f"{cpu[bare]:.2f} and {cpu[ours]:.2f} s of a core, {numbers[f'{ours}_cpu_ratio']:.2f}"
        return f"{speed}; rounds {each}; {cores}"

    again = f"the command with its start; the function alone {seconds['pull again']:.2f} s"
    spent = ", ".join(f"{name} {each:.1f} s" for name, each in numbers["evaluation_seconds"].items())
    evaluated = f"the demo's protocol, {numbers['evaluation_pictures']} pictures and the prior's: {spent}"
    rows = [
        ("download by boto3 ÷ pull, verified", "pull_ratio", pair("download", "pull")),
        ("upload by boto3 ÷ publish", "publish_ratio", pair("upload", "publish")),
        ("the same release again (s)", "repull_seconds", again),
        ("evaluation beside its own drawing", "evaluation_overhead", evaluated),
    ]
    lines = [
        f"# What a release costs, {numbers['date']}",
        "",
        f"{numbers['machine']}. A file of {megabytes} MB, {numbers['server']}, {numbers['rounds']} rounds,",
        "bare and ours in turn on an empty bucket, by the clock: the median of the rounds' ratios.",
        "Again: `make bench-release`.",
        "",
        "| measure | figure | from | goal |",
        "| --- | --- | --- | --- |",
        *(f"| {label} | {numbers[name]:.3f} | {source} | {GOALS[name]} |" for label, name, source in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--endpoint", help="an S3 server that runs already; credentials as usual for AWS")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--subjects", type=int, default=16, help="people of the evaluation")
    options = parser.parse_args()
    runs = Path("runs/bench")
    runs.mkdir(parents=True, exist_ok=True)
    numbers: dict[str, Any] = {"machine": busy_machine(), "date": date.today().isoformat()}
    numbers |= {"megabytes": options.megabytes, "rounds": options.rounds}
    with tempfile.TemporaryDirectory(prefix="moa-bench-", dir=runs) as place:
        folder = Path(place).absolute()
        numbers |= measure_overhead(folder / "evaluation", options.subjects)
        if options.endpoint:
            numbers |= {"server": f"the server at {options.endpoint}"}
            numbers |= measure(options.endpoint, folder, options.megabytes, options.rounds)
        else:
            with own_server() as endpoint:
                numbers |= {"server": "moto's server"}
                numbers |= measure(endpoint, folder, options.megabytes, options.rounds)
    table = table_of(numbers)
    console.print(table, markup=False)
    out, results = runs / "release.json", Path(__file__).parent / "results" / f"{numbers['date']}-release.md"
    others = json.loads(out.read_text("utf-8")) if out.exists() else {}
    out.write_text(json.dumps(others | numbers, indent=2) + "\n", "utf-8")
    results.write_text(table, "utf-8")
    console.print(f"{out}\n{results}")


if __name__ == "__main__":
    main()
