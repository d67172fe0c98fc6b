"""What `moa up` would start; that it does is in tests/end_to_end/test_service.py."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from flows import service_parts
from flows.service_parts import Asked, about_store, parts_of
from infra.ray_session import ONE_MACHINE
from infra.service import Part
from infra.settings import load_settings

ASKED = Asked("demo", None, ["train.steps=3"])


def _parts(tmp_path: Path, dry_run: bool = True, **changes: str) -> dict[str, Part]:
    return {one.name: one for one in parts_of(load_settings("demo", tmp_path, changes), ASKED, dry_run)}


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    parts = _parts(tmp_path)
    assert {"prefect-server", "deploy", "ray-head", "worker", "watcher"} <= parts.keys()
    assert list(tmp_path.iterdir()) == []


def test_all_listens_on_loopback_and_runs_find_ray_there(tmp_path: Path) -> None:
    parts = _parts(tmp_path, **{"service.ray_port": "7001"})
    assert "--host 127.0.0.1" in " ".join(parts["prefect-server"].command)
    head = {"--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--labels={ONE_MACHINE}=true"}
    assert head <= set(parts["ray-head"].command)
    for of_ray in ("ray-head", "worker"):
        assert parts[of_ray].environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    deploy = " ".join(parts["deploy"].command)
    assert "--set train.steps=3" in deploy and "--set ray.address=127.0.0.1:7001" in deploy
    assert "ray.address" not in " ".join(parts["watcher"].command)


def test_a_cluster_that_is_named_gets_no_second_head(tmp_path: Path) -> None:
    parts = parts_of(load_settings("demo", tmp_path, {"ray.address": "http://head:8265"}), ASKED, dry_run=True)
    assert "ray-head" not in {one.name for one in parts}


def test_pods_have_workers_of_their_own(tmp_path: Path) -> None:
    assert "worker" not in _parts(tmp_path, **{"service.pool_type": "kubernetes"})


def test_leases_outlive_the_server(tmp_path: Path) -> None:
    environment = _parts(tmp_path)["prefect-server"].environment
    assert environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith(".filesystem")


def test_ended_runs_are_deleted_in_time(tmp_path: Path) -> None:
    """Whether Prefect understands it: its own settings read these variables."""
    environment = _parts(tmp_path, **{"service.run_days": "2"})["prefect-server"].environment
    code = "import prefect.settings as s; v = s.get_current_settings().server.services.db_vacuum"
    code += "; print(sorted(v.enabled_vacuum_types), v.retention_period.days)"
    said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert said.stdout.split("\n")[0] == "['events', 'flow_runs', 'orphans'] 2"


def test_without_postgresql_there_is_sqlite_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_parts, "_postgres_programs", lambda: None)
    parts = _parts(tmp_path)
    assert "postgresql" not in parts and "on SQLite (PostgreSQL is not installed)" in parts["prefect-server"].says


def test_secrets_are_made_once_and_are_their_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_parts, "_postgres_programs", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, again = _parts(tmp_path, dry_run=False), _parts(tmp_path, dry_run=False)
    token = first["ray-head"].environment["RAY_AUTH_TOKEN"]
    assert len(token) == 64 and again["ray-head"].environment["RAY_AUTH_TOKEN"] == token
    assert (tmp_path / "service" / "ray-token").stat().st_mode & 0o077 == 0
    assert token not in " ".join(part for one in first.values() for part in one.command)


def test_the_store_is_a_folder_or_somebody_elses_server(tmp_path: Path) -> None:
    assert "no S3 server is started" in about_store(load_settings("demo", tmp_path))["says"]
    other = {"storage.root": "s3://bucket/moa", "storage.endpoint_url": "http://minio:9000"}
    assert about_store(load_settings("demo", tmp_path, other))["says"] == (
        "s3://bucket/moa on http://minio:9000: served by others"
    )


def test_prometheus_keeps_the_shipped_rules_and_asks_this_machine(tmp_path: Path) -> None:
    shipped = tmp_path / "prometheus.yml"
    shipped.write_text(
        "global: {scrape_interval: 15s}\nrule_files: [alerts.yml]\n"
        "scrape_configs: [{job_name: moa, static_configs: [{targets: ['metrics:9465']}]}]\n"
    )
    settings = load_settings("demo", tmp_path, {"monitoring.prometheus_port": "9464"})
    made = service_parts._scraped_here(settings, shipped, "/tmp/ray-folder")
    assert made["rule_files"] == [str(tmp_path / "alerts.yml")] and made["global"] == {"scrape_interval": "15s"}
    by_name = {one["job_name"]: one for one in made["scrape_configs"]}
    assert by_name["moa-training"]["static_configs"] == [{"targets": ["127.0.0.1:9464"]}]
    assert by_name["ray"]["file_sd_configs"] == [{"files": ["/tmp/ray-folder/prom_metrics_service_discovery.json"]}]
    if program := shutil.which("promtool"):  # Debian's prometheus brings it
        (tmp_path / "alerts.yml").write_text("groups: []\n")
        (tmp_path / "made.yml").write_text(yaml.safe_dump(made))
        done = subprocess.run([program, "check", "config", tmp_path / "made.yml"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_rays_sessions_of_before_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_parts, "_postgres_programs", lambda: None)
    (folder,) = [
        Path(part.removeprefix("--temp-dir="))
        for part in _parts(tmp_path, dry_run=False)["ray-head"].command
        if part.startswith("--temp-dir=")
    ]
    try:
        for day in (1, 2, 3):
            (folder / f"session_2026-11-0{day}" / "logs").mkdir(parents=True)
        (folder / "session_latest").symlink_to(folder / "session_2026-11-03")
        _parts(tmp_path, dry_run=False)
        assert sorted(one.name for one in folder.iterdir()) == ["session_2026-11-03", "session_latest"]
    finally:
        shutil.rmtree(folder)
