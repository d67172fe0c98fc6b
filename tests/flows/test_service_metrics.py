"""What Prometheus learns of a store with photos, shards, stages and releases; a real Prometheus asks."""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows.run import Run
from flows.service_metrics import ServiceMetrics, one_reading, serving
from flows.stage_log import Outcome, note_run
from flows.training_metrics import MetricsServer
from infra.errors import UserError
from infra.registry import Release, Releases
from infra.settings import Settings, load_settings
from preprocessing.catalog import PhotoRow, ShardRow
from tests.prometheus_server import PrometheusServer, needs_prometheus

MEASURE = {"mean": 0.5, "low": 0.4, "high": 0.6, "values": 8}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Three photos, one of them refused; one shard that was captioned and not segmented; two releases, of which the
    gate kept the second back; three runs, of which the last failed."""
    settings = load_settings("demo", tmp_path / "workspace", {"storage.root": str(tmp_path / "store")})
    run = Run(settings)
    shards = [
        ShardRow(stage, "s1", run.fingerprints[stage], f"shards/{stage}/s1.tar", "0" * 64, 2, "folder")
        for stage in ("ingest", "caption")
    ]
    photos = [PhotoRow("ingest", "s1", key, "folder", f"{key}.png", "kept") for key in ("a", "b")]
    photos.append(PhotoRow("ingest", "s1", "", "folder", "c.png", "refused", "unreadable", "…"))
    run.catalog.commit(shards, photos)
    for text, promote in (("one", True), ("two", False)):
        release = _publish(run.releases, text, promote)
        if promote:
            run.releases.promote("production", release.id, "passed the gate")
    for outcome in (Outcome.FINISHED, Outcome.FINISHED, Outcome.FAILED):
        note_run(run.store, "retrain", outcome, 12.5)
    return settings


def _publish(releases: Releases, text: str, promote: bool) -> Release:
    check = {"name": "identity gain over the prior", "passed": promote}
    card = {
        "run_id": text,
        "metrics": {"identity": MEASURE, "pictures": 8},
        "verdict": {"promote": promote, "reasons": [], "checks": [check]},
    }
    return releases.publish({"adapter.bin": text.encode()}, card)


def _samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the labels' names -> value."""
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_a_reading_says_what_is_there(settings: Settings) -> None:
    found = _samples(one_reading(settings))
    assert found["moa_photos", "kept"] == 2 and found["moa_photos", "refused"] == 1
    assert found["moa_refused_photos", "unreadable"] == 1
    assert found["moa_shards", "caption"] == 1 and found["moa_shards", "segment"] == 0
    assert found["moa_pending_shards", "segment"] == 1 and found["moa_pending_shards", "caption"] == 0
    assert found["moa_stage_runs_total", "finished", "retrain"] == 2
    assert found["moa_stage_runs_total", "failed", "retrain"] == 1
    assert found["moa_stage_last_run_duration_seconds", "retrain"] == 12.5
    ended, well = (found[f"moa_stage_last_{what}_timestamp_seconds", "retrain"] for what in ("run", "finished"))
    assert ended > well > 1.7e9
    assert found["moa_release_number", "production"] == 1 and found["moa_release_number", "newest"] == 2
    assert found["moa_releases_total", "promote"] == found["moa_releases_total", "keep"] == 1
    assert found["moa_release_measure", "identity", "production"] == 0.5
    assert found["moa_gate_check_passed", "identity gain over the prior"] == 0
    assert found["moa_release_moves_total", "production"] == 1
    assert found["moa_exporter_store_up",] == 1


def test_shards_of_other_settings_do_not_count(settings: Settings) -> None:
    other = load_settings("demo", settings.workspace, {"storage.root": settings.store_root, "caption.num_beams": "5"})
    found = _samples(one_reading(other))
    assert found["moa_shards", "caption"] == 0 and found["moa_pending_shards", "caption"] == 1


def test_where_the_models_are_not_the_rest_is_still_told(settings: Settings) -> None:
    """The exporter's machine need not have them; only what is pending depends on them."""
    changes = {"storage.root": settings.store_root, "models.captioner.location": "/nowhere"}
    found = _samples(one_reading(load_settings("demo", settings.workspace, changes)))
    assert found["moa_shards", "caption"] == 1 and not any(name[0] == "moa_pending_shards" for name in found)


def test_a_store_that_breaks_off_leaves_the_last_reading(settings: Settings) -> None:
    service = ServiceMetrics(settings)
    service.read()
    before = {family.name: family for family in service.collect()}
    manifest = Path(settings.store_root) / "releases/moa/0002/manifest.json"
    manifest.rename(manifest.with_suffix(".away"))
    (manifest.parent / "manifest.json").write_text("no manifest")
    service._run = Run(settings)  # nothing remembered
    service.read()
    after = {family.name: family for family in service.collect()}
    assert "cannot be used" in service.problem
    assert after["moa_exporter_store_up"].samples[0].value == 0
    assert after["moa_release_number"].samples == before["moa_release_number"].samples
    manifest.with_suffix(".away").rename(manifest)
    service.read()
    assert service.problem == "" and {one.name: one for one in service.collect()}.keys() == before.keys()


def test_what_cannot_be_read_or_listened_on_is_one_sentence(settings: Settings, tmp_path: Path) -> None:
    away = {"storage.root": "s3://nobody/x", "storage.endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(UserError, match="The metrics of s3://nobody/x cannot be read"):
        one_reading(load_settings("demo", tmp_path, away))
    with serving(settings, "127.0.0.1", 0) as port:
        with pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be listened on"):
            with serving(settings, "127.0.0.1", port):
                pass


@needs_prometheus
def test_names_and_units_follow_the_convention(settings: Settings) -> None:
    """promtool's own lint."""
    asked = subprocess.run(
        ["promtool", "check", "metrics"], input=one_reading(settings), capture_output=True, text=True, timeout=60
    )
    assert (asked.returncode, asked.stderr) == (0, ""), asked.stderr


@needs_prometheus
def test_a_real_prometheus_follows_a_training(tmp_path: Path) -> None:
    """Its own endpoint, under the shipped configuration's job for it; a loss that is no number is noticed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (folder := tmp_path / "prometheus").mkdir()
    with MetricsServer(port, "run") as server:
        server.show({"step": 10, "loss/total": 0.5, "speed/data_wait": 0.1})
        with PrometheusServer(folder, {"moa-training": [f"127.0.0.1:{port}"]}) as prometheus:
            found = prometheus.until('moa_training_loss{loss="total"}', bool)
            assert found[0]["metric"]["run"] == "run" and found[0]["value"][1] == "0.5"
            assert prometheus.query("moa_training_steps_total")[0]["value"][1] == "10"
            assert prometheus.query("ALERTS") == []
            server.show({"step": 20, "loss/total": float("nan"), "speed/data_wait": 0.1})
            prometheus.until("ALERTS{alertname='MoaTrainingLossIsNoNumber'}", bool)  # pending: it has a minute


@needs_prometheus
def test_a_real_prometheus_reads_it_and_raises_the_alarm(settings: Settings, tmp_path: Path) -> None:
    (folder := tmp_path / "prometheus").mkdir()
    with serving(settings, "127.0.0.1", 0, seconds=0.5) as port:
        with PrometheusServer(folder, {"moa": [f"127.0.0.1:{port}"]}) as prometheus:
            found = prometheus.until('moa_release_number{name="production"}', bool)
            assert found[0]["value"][1] == "1" and found[0]["metric"]["job"] == "moa"
            prometheus.until("ALERTS{alertstate='firing', alertname='MoaStageFailed', stage='retrain'}", bool)
            note_run(Run(settings).store, "retrain", Outcome.FINISHED, 3.0)
            prometheus.until("ALERTS{alertname='MoaStageFailed'}", lambda alerts: not alerts)
            shutil.rmtree(settings.store_root)
            Path(settings.store_root).write_text("a file where the folder should be")
            prometheus.until("moa_exporter_store_up == 0", bool)
            assert prometheus.query('moa_release_number{name="production"}')[0]["value"][1] == "1"
