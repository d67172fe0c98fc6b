"""What `moa up` runs on one machine without containers, and in which order.

    PostgreSQL (else SQLite) ─► Prefect's server ─► moa deploy ─► Ray head ─► worker ─► watcher     Prometheus

All listens on loopback alone, but for torch's rendezvous while several workers train. The object store is the preset's:
a folder, or a bucket that somebody else serves; no S3 server is started, for moto's is for tests and keeps nothing.
"""

import json
import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.session import environment_of_runs
from infra.errors import UserError
from infra.ports import free_ports
from infra.ray_session import NO_CLUSTER, ONE_MACHINE
from infra.service import Part
from infra.settings import Settings

_POSTGRES_USER = "moa"
_DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Asked:
    """How the settings were asked for, so that every process reads them again."""

    preset: str
    source: str | None
    changes: list[str]

    def options(self, settings: Settings) -> list[str]:
        """For a command of this program."""
        source = ["--source", self.source] if self.source else []
        sets = [part for change in self.changes for part in ("--set", change)]
        return ["--preset", self.preset, "--workspace", str(settings.workspace), *source, *sets]


def parts_of(settings: Settings, asked: Asked, dry_run: bool = False) -> list[Part]:
    """What is to run. Prepares passwords and an empty database on first use; with dry_run it writes nothing."""
    home, service = settings.service_home, settings.service
    if not dry_run:
        home.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    api = f"http://127.0.0.1:{service.prefect_port}/api"
    postgres, database, stored = _database(home, service.postgres_port, dry_run)
    shared = {
        "PREFECT_API_URL": api,
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_CLI_COLORS": "false",
        "PYTHONUNBUFFERED": "1",
        **environment_of_runs(),
    }
    server = {
        **shared,
        **database,
        # In memory, its default, a restarted server knows no leases: runs would lose their slots, or slots their runs.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": str(round(service.late_minutes * 60)),
        # Not its default: runs, with their logs and pictures of people, would stay for ever.
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(round(service.run_days * 86_400)),
    }
    ray_parts, ray_environment, ray_changes = _ray(settings, home, shared, dry_run)
    deployed = Asked(asked.preset, asked.source, [*asked.changes, *ray_changes])
    runs = {**shared, **ray_environment, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(service.heartbeat_seconds)}
    moa = [python, "-m", "flows.cli"]
    return [
        *postgres,
        Part(
            "prefect-server",
            [python, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(service.prefect_port)],
            f"http:{api}/health",
            server,
            service.prefect_port,
            says=f"http://127.0.0.1:{service.prefect_port}, {stored}",
        ),
        Part("deploy", [*moa, "deploy", *deployed.options(settings)], "exit", shared),
        *ray_parts,
        *_worker(settings, python, runs),
        Part(
            "watcher",
            [*moa, "watch", *asked.options(settings)],
            f"file:{settings.watch_folder / 'beat.json'}",
            shared,
            says=f"{settings.ingest.source}, every {service.look_seconds:g} s",
        ),
        *_metrics(settings, asked, shared),
        *_prometheus(settings, home, dry_run),
    ]


def _worker(settings: Settings, python: str, environment: Mapping[str, str]) -> list[Part]:
    """A process worker; a Kubernetes pool's workers are pods."""
    service = settings.service
    if service.pool_type != "process":
        return []
    command = [
        python, "-m", "prefect", "worker", "start", "--pool", service.pool, "--type", "process",
        "--install-policy", "never", "--name", f"moa-{settings.publish.model}",
    ]  # fmt: skip
    says = f"takes what is due in the work pool {service.pool}"
    # Its runs are told to end first.
    return [Part("worker", command, "says:started!", dict(environment), stop_seconds=40.0, says=says)]


def _ray(
    settings: Settings, home: Path, shared: Mapping[str, str], dry_run: bool
) -> tuple[list[Part], dict[str, str], list[str]]:
    """The head, what its drivers need in their environment, and the settings by which they find it."""
    service = settings.service
    if settings.ray.address:
        return [], {}, []
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _secret(home / "ray-token", dry_run),
        NO_CLUSTER: "0",
    }
    # Short, for Ray's sockets have paths of at most 107 characters; the same at each start.
    folder = _short_folder(home, dry_run)
    client, agent, agent_grpc = free_ports(3)
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={service.ray_port}", f"--num-cpus={settings.ray.num_cpus}",
        f"--labels={ONE_MACHINE}=true",
        f"--object-store-memory={settings.ray.object_store_mb * 10**6}", f"--temp-dir={folder}",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={service.ray_dashboard_port}",
        # Nobody needs to know these; their usual ones may be another Ray's.
        f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}",
        f"--dashboard-agent-grpc-port={agent_grpc}",
    ]  # fmt: skip
    says = f"127.0.0.1:{service.ray_port}, its dashboard http://127.0.0.1:{service.ray_dashboard_port}"
    head = Part(
        "ray-head", command, f"tcp:{service.ray_dashboard_port}", {**shared, **environment}, service.ray_port,
        says=says,
        # Its agents keep something of each driver and worker that there was.
        most_mb=service.ray_head_mb, busy="prefect.engine",
    )  # fmt: skip
    return [head], environment, [f"ray.address=127.0.0.1:{service.ray_port}"]


def _prometheus(settings: Settings, home: Path, dry_run: bool) -> list[Part]:
    """Debian's, with the rules that the monitoring folder brings; nothing where one of the two is not here."""
    program = shutil.which("prometheus")
    shipped = Path(__file__).parents[1] / "infra" / "monitoring" / "prometheus.yml"
    if program is None or not shipped.is_file():
        return []
    port, file = settings.service.scrape_port, home / "prometheus.yml"
    if not dry_run:
        file.write_text(yaml.safe_dump(_scraped_here(settings, shipped, _short_folder(home, dry_run))), "utf-8")
    command = [
        program, f"--config.file={file}", f"--storage.tsdb.path={home / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    return [Part("prometheus", command, f"http:http://127.0.0.1:{port}/-/ready", port=port, says=f"127.0.0.1:{port}")]


def _scraped_here(settings: Settings, shipped: Path, ray_folder: str) -> dict[str, Any]:
    """The shipped file's rules and intervals, and in place of its containers this machine's processes."""
    about = dict(yaml.safe_load(shipped.read_text("utf-8")))
    about["rule_files"] = [str(shipped.parent / name) for name in about.get("rule_files", [])]
    training = settings.monitoring.prometheus_port
    about["scrape_configs"] = [
        # Ray's head writes down where its machines answer.
        {
            "job_name": "ray",
            "file_sd_configs": [{"files": [f"{ray_folder}/prom_metrics_service_discovery.json"]}],
        },
        *([{"job_name": "moa-training", **_target(training)}] if training else []),
        {"job_name": "moa", **_target(settings.service.metrics_port)},
    ]
    return about


def _metrics(settings: Settings, asked: Asked, environment: Mapping[str, str]) -> list[Part]:
    """What the store knows, for Prometheus."""
    port = settings.service.metrics_port
    named = [f"ingest.source={asked.source}"] if asked.source else []
    options = Asked(asked.preset, None, [*asked.changes, *named]).options(settings)
    command = [sys.executable, "-m", "flows.cli", "metrics", "--port", str(port), *options]
    address = f"http://127.0.0.1:{port}/metrics"
    return [Part("metrics", command, f"http:{address}", dict(environment), port, says=address)]


def _target(port: int) -> dict[str, Any]:
    return {"static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}


def _database(home: Path, port: int, dry_run: bool) -> tuple[list[Part], dict[str, str], str]:
    """PostgreSQL where it can be had, with the server's way to it; else SQLite, and why."""
    programs, why = _postgres_programs(), ""
    user = ""
    if programs is None:
        why = "PostgreSQL is not installed"
    elif os.geteuid() == 0:
        user, why = _unprivileged(home)
    if why or programs is None:
        url = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
        return [], {"PREFECT_API_DATABASE_CONNECTION_URL": url}, f"on SQLite ({why})"
    folder, password = home / "postgres", _secret(home / "postgres-password", dry_run)
    if not dry_run and not (folder / "PG_VERSION").exists():
        _make_cluster(programs, folder, password, user)
    command = [
        str(programs / "postgres"), "-D", str(folder), "-c", "listen_addresses=127.0.0.1", "-c", f"port={port}",
        "-c", "unix_socket_directories=", "-c", "max_connections=100",
        # Compiling takes a second and more for queries that then run for milliseconds: those of a run's graph.
        "-c", "jit=off",
    ]  # fmt: skip
    url = f"postgresql+asyncpg://{_POSTGRES_USER}:{password}@127.0.0.1:{port}/postgres"
    # SIGINT: PostgreSQL does not wait for its clients then.
    part = Part("postgresql", command, f"tcp:{port}", {}, port, stop="SIGINT", user=user, says=f"127.0.0.1:{port}")
    return [part], {"PREFECT_API_DATABASE_CONNECTION_URL": url}, "on PostgreSQL"


def _postgres_programs() -> Path | None:
    """The folder of the newest one: Debian's is not on the path."""
    if found := shutil.which("initdb"):
        return Path(found).parent
    versions = [path.parent for path in _DEBIAN.glob("*/bin/initdb") if path.parts[-3].isdigit()]
    return max(versions, key=lambda path: int(path.parts[-2]), default=None)


def _unprivileged(home: Path) -> tuple[str, str]:
    """As whom PostgreSQL runs where this is root, which it refuses; or why it cannot."""
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return "", "PostgreSQL does not run as root, and there is no user postgres"
    there = [folder for folder in (home, *home.parents) if folder.is_dir()]
    closed = [folder for folder in there if not folder.stat().st_mode & 0o001]
    if closed:
        return "", f"the user postgres may not enter {closed[-1]}"
    return "postgres", ""


def _make_cluster(programs: Path, folder: Path, password: str, user: str) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if user:
        shutil.chown(folder, user)
    with tempfile.NamedTemporaryFile("w", prefix="moa-", encoding="utf-8") as file:
        file.write(password)
        file.flush()
        if user:
            shutil.chown(file.name, user)
        command = [
            str(programs / "initdb"), "-D", str(folder), "-U", _POSTGRES_USER, "-A", "scram-sha-256",
            f"--pwfile={file.name}", "-E", "UTF8", "--locale=C.UTF-8",
        ]  # fmt: skip
        done = subprocess.run(command, user=user or None, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"PostgreSQL's folder {folder} could not be made: {' '.join(done.stderr.split())[-300:]}")


def _secret(path: Path, dry_run: bool) -> str:
    """Made once, and readable by its owner alone."""
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        if dry_run:
            return ""
        value = secrets.token_hex(32)
        with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(value)
        return value


def _short_folder(home: Path, dry_run: bool) -> str:
    """Ray's; of the sessions of before the last one's logs stay there."""
    path = home / "ray-folder.json"
    if path.exists() and Path(folder := json.loads(path.read_text("utf-8"))).is_dir():
        sessions = sorted(one for one in Path(folder).glob("session_*") if not one.is_symlink())
        for old in sessions[:-1] if not dry_run else ():
            shutil.rmtree(old, ignore_errors=True)
        return str(folder)
    if dry_run:
        return f"{tempfile.gettempdir()}/moa-ray-…"
    folder = tempfile.mkdtemp(prefix="moa-ray-")
    path.write_text(json.dumps(folder), "utf-8")
    return folder


def about_store(settings: Settings) -> dict[str, Any]:
    """Where the photos' shards and the releases are, for people."""
    root = settings.store_root
    if root.startswith("s3://"):
        return {"store": root, "says": f"{root} on {settings.storage.endpoint_url or 'AWS'}: served by others"}
    return {"store": root, "says": f"{root}: a folder, and no S3 server is started"}
