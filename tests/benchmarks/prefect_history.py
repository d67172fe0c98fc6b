"""Whether Prefect's pages stay as fast as they were after years of runs: `make bench-service`.

A server as `moa up` starts it, on PostgreSQL where that is installed, gets one run of ten tasks by Prefect's own
client, and what its run page asks for is timed. Then that run's rows are copied, with new ids and at other hours, until
there are 10,000 runs and 100,000 task runs, and the same is asked again, and `moa status` too.

    python -m tests.benchmarks.prefect_history [--runs 10000] [--sqlite]
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from sqlalchemy import MetaData, Table, bindparam, insert, select, update
from sqlalchemy.ext.asyncio import create_async_engine

from flows import service_parts
from flows.service_parts import Asked, parts_of
from infra.ports import free_ports
from infra.settings import load_settings
from tests.benchmarks.machine import busy_machine

ROOT = Path(__file__).parents[2]
TASKS, LINES, ASKED = 10, 20, 40
console = Console(highlight=False)

RUN = """
import sys
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

@task(cache_policy=None)
def stage(number):
    get_run_logger().info("stage %d begins", number)
    create_table_artifact([{"kept": number, "refused": 0}], key=f"stage-{number}")
    get_run_logger().info("stage %d ends", number)

@flow(name="retrain")
def retrain():
    for number in range(int(sys.argv[1])):
        stage(number)
    create_markdown_artifact("# done", key="summary")

retrain()
"""


def main() -> None:
    """Measure, print the table, write it down."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.prefect_history", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--sqlite", action="store_true", help="also where PostgreSQL is installed")
    options = parser.parse_args()
    found = measure(options.runs, options.sqlite)
    page = report(found)
    console.print(page, markup=False)
    (ROOT / "runs/bench").mkdir(parents=True, exist_ok=True)
    (ROOT / "runs/bench/service.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    path = ROOT / f"tests/benchmarks/results/{date.today().isoformat()}-service{'-sqlite' if options.sqlite else ''}.md"
    path.write_text(page + "\n", "utf-8")


def measure(runs: int, sqlite: bool = False) -> dict[str, Any]:
    """{"page_ratio", "list_ratio", "status_seconds", …}; times in milliseconds, medians of 40, by request."""
    machine = busy_machine()
    if sqlite:
        service_parts._postgres_programs = lambda: None
    names = ("prefect_port", "postgres_port", "ray_port", "ray_dashboard_port", "metrics_port", "scrape_port")
    with tempfile.TemporaryDirectory(prefix="moa-history-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user
        ports = {f"service.{name}": str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
        settings = load_settings("demo", Path(folder), ports)
        with _server(settings) as (environment, database, where):
            api = environment["PREFECT_API_URL"]
            subprocess.run(
                [sys.executable, "-c", RUN, str(TASKS)], env=environment, check=True, capture_output=True, timeout=300
            )
            run = _only_run(api)
            empty = _times(api, run)
            started = time.perf_counter()
            asyncio.run(_fill(database, run, runs - 1))
            filled = time.perf_counter() - started
            counts = {kind: httpx.post(f"{api}/{kind}/count", json={}).json() for kind in ("flow_runs", "task_runs")}
            full = _times(api, run)
            options = [part for key, value in ports.items() for part in ("--set", f"{key}={value}")]
            command = [sys.executable, "-m", "flows.cli", "status", "--json", "--workspace", folder, *options]
            seconds = []
            for _ in range(5):
                begun = time.perf_counter()
                subprocess.run(command, env=environment, check=True, capture_output=True, cwd=ROOT)
                seconds.append(time.perf_counter() - begun)
    page, listed = [name for name in empty if name != "the list"], ["the list"]
    return {
        "machine": machine,
        "where": where,
        **counts,
        "fill_seconds": filled,
        "empty_ms": empty,
        "full_ms": full,
        "page_ratio": sum(full[name] for name in page) / sum(empty[name] for name in page),
        "list_ratio": sum(full[name] for name in listed) / sum(empty[name] for name in listed),
        "status_seconds": statistics.median(seconds),
    }


@contextlib.contextmanager
def _server(settings: Any) -> Iterator[tuple[dict[str, str], str, str]]:
    """The service's Prefect server with its database: the environment of its clients, the database's address, and
    where it is for people."""
    parts = {part.name: part for part in parts_of(settings, Asked("demo", None, []))}
    wanted = [parts[name] for name in ("postgresql", "prefect-server") if name in parts]
    running = []
    try:
        for part in wanted:
            with (settings.service_home / f"{part.name}.log").open("wb") as log:
                environment = os.environ | part.environment
                running.append(
                    subprocess.Popen(
                        part.command,
                        env=environment,
                        stdout=log,
                        stderr=log,
                        user=part.user or None,
                        cwd="/",
                        start_new_session=True,
                    )  # fmt: skip
                )
            if part.name == "postgresql":
                time.sleep(3)  # the server asks for it again by itself
        server = parts["prefect-server"]
        api = server.environment["PREFECT_API_URL"]
        deadline = time.monotonic() + 180
        while not _answers(f"{api}/health"):
            assert time.monotonic() < deadline and running[-1].poll() is None, "Prefect's server did not come up"
            time.sleep(0.2)
        client = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(settings.service_home / "client")}
        yield client, server.environment["PREFECT_API_DATABASE_CONNECTION_URL"], server.says.partition(", ")[2]
    finally:
        for process in reversed(running):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _only_run(api: str) -> str:
    """Its id, once the server has all that it wrote: logs and task runs arrive late."""
    deadline = time.monotonic() + 120
    while True:
        (run,) = httpx.post(f"{api}/flow_runs/filter", json={}).json()
        tasks = httpx.post(f"{api}/task_runs/filter", json={}).json()
        logs = httpx.post(f"{api}/logs/filter", json={}).json()
        done = [task for task in tasks if task["state_type"] == "COMPLETED"]
        if run["state_type"] == "COMPLETED" and len(done) == TASKS and len(logs) >= LINES:
            return str(run["id"])
        assert time.monotonic() < deadline, (run["state_type"], len(done), len(logs))
        time.sleep(0.5)


def _times(api: str, run: str) -> dict[str, float]:
    """Milliseconds of what Prefect's pages ask for, each the median of many."""
    of_run = {"flow_runs": {"id": {"any_": [run]}}}
    asked: dict[str, tuple[str, str, Any]] = {
        "the run": ("GET", f"flow_runs/{run}", None),
        "its graph": ("GET", f"flow_runs/{run}/graph-v2", None),
        "its task runs": ("POST", "task_runs/filter", {**of_run, "sort": "EXPECTED_START_TIME_DESC", "limit": 50}),
        "their number": ("POST", "task_runs/count", of_run),
        "its logs": ("POST", "logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 200}),
        "its artifacts": ("POST", "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}}),
        "its subflows": ("POST", "flow_runs/filter", {"flow_runs": {"parent_flow_run_id": {"any_": [run]}}}),
        "the list": ("POST", "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 10}),
    }
    found = {}
    with httpx.Client(base_url=f"{api}/", timeout=60) as client:
        for name, (method, path, body) in asked.items():
            seconds = []
            for number in range(ASKED + 5):
                begun = time.perf_counter()
                client.request(method, path, json=body).raise_for_status()
                if number >= 5:  # the first ones open connections and plan queries
                    seconds.append(time.perf_counter() - begun)
            found[name] = 1000 * statistics.median(seconds)
    return found


async def _fill(database: str, run: str, copies: int) -> None:
    """Copies of the run's rows in every table that grows with runs, each copy half an hour before the last."""
    engine, tables = create_async_engine(database), MetaData()
    names = ("flow_run", "flow_run_state", "task_run", "task_run_state", "log", "artifact")
    async with engine.begin() as connection:
        await connection.run_sync(tables.reflect, only=list(names))
        template = {
            name: [row._asdict() for row in await connection.execute(select(_of(tables, name)))] for name in names
        }
        for first in range(0, copies, 100):
            for name in ("flow_run", "task_run", "flow_run_state", "task_run_state", "log", "artifact"):
                rows = [row for copy in range(first, min(first + 100, copies)) for row in _copied(template[name], copy)]
                table = _of(tables, name)
                # A run names its state, and a state its run: the run comes first, and without.
                bare = [{**row, "state_id": None} if "state_id" in row else row for row in rows]
                await connection.execute(insert(table), bare)
                if run_of := {"flow_run_state": "flow_run", "task_run_state": "task_run"}.get(name):
                    of = _of(tables, run_of)
                    change = update(of).where(of.c.id == bindparam("run")).values(state_id=bindparam("state"))
                    await connection.execute(
                        change,
                        [
                            {"run": row["id"], "state": row["state_id"]}
                            for copy in range(first, min(first + 100, copies))
                            for row in _copied(template[run_of], copy)
                        ],
                    )
    async with engine.connect() as connection:
        if database.startswith("postgresql"):  # as its autovacuum does within a minute
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.exec_driver_sql("ANALYZE")
    await engine.dispose()


def _of(tables: MetaData, name: str) -> Table:
    return tables.tables[name]


def _copied(rows: list[dict[str, Any]], copy: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {name: _other(name, value, copy) for name, value in row.items()}


def _other(name: str, value: Any, copy: int) -> Any:
    if isinstance(value, datetime):
        return value - timedelta(minutes=30 * (copy + 1))
    if value is not None and (name == "id" or name in ("flow_run_id", "task_run_id", "state_id")):
        new = uuid.uuid5(uuid.UUID(str(value)), str(copy))
        return new if isinstance(value, uuid.UUID) else str(new)
    return value


def report(found: dict[str, Any]) -> str:
    """The page of results."""
    lines = [
        f"# Prefect after {found['flow_runs']:,} runs and {found['task_runs']:,} task runs",
        "",
        f"{found['machine']}; {found['where']}; `make bench-service`. Milliseconds, medians of {ASKED}.",
        "",
        "| what the page asks for | one run | all of them | ratio |",
        "| --- | --- | --- | --- |",
    ]
    for name, empty in found["empty_ms"].items():
        full = found["full_ms"][name]
        lines.append(f"| {name} | {empty:.1f} | {full:.1f} | {full / empty:.2f} |")
    lines += [
        f"| **a run's page together** | | | **{found['page_ratio']:.2f}** (at most 2) |",
        "",
        f"`moa status` took {found['status_seconds']:.2f} s (at most 2).",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
