"""Rules and dashboards: Prometheus takes them, and all that they ask for is told by somebody."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.run import Run
from flows.service_metrics import ServiceMetrics
from flows.stage_log import Outcome, note_run
from flows.training_metrics import MetricsServer
from infra.settings import load_settings
from preprocessing.catalog import PhotoRow
from tests.prometheus_server import MONITORING, PrometheusServer, needs_prometheus
from tests.ray_head import RayHead

ROOT = MONITORING.parents[1]
DASHBOARDS = sorted((MONITORING / "dashboards").glob("*.json"))
# What Ray 2.60 tells of a machine; the GPU's only where there is one.
RAY = {
    *("ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_node_disk_usage"),
    *("ray_node_disk_free", "ray_node_gpus_utilization"),
}
_WORDS = set("sum without by ignoring on time delta increase rate and or unless group_left".split())


def _promtool(*words: str) -> str:
    asked = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=120, cwd=MONITORING)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    return asked.stdout + asked.stderr


@needs_prometheus
def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    config = re.sub(r"/run/secrets/\w+", "/dev/null", (MONITORING / "prometheus.yml").read_text("utf-8"))
    config = config.replace("[alerts.yml]", f"[{MONITORING / 'alerts.yml'}]")
    (tmp_path / "prometheus.yml").write_text(config)
    assert "SUCCESS" in _promtool("check", "config", str(tmp_path / "prometheus.yml"))


@needs_prometheus
def test_every_alert_fires_when_it_should_and_not_before() -> None:
    assert "SUCCESS" in _promtool("test", "rules", "alerts_test.yml")


def test_every_alert_has_both_cases() -> None:
    cases = yaml.safe_load((MONITORING / "alerts_test.yml").read_text("utf-8"))["tests"]
    asked = [(one["alertname"], bool(one["exp_alerts"])) for case in cases for one in case["alert_rule_test"]]
    for rule in _rules():
        assert {(rule["alert"], True), (rule["alert"], False)} <= set(asked), rule["alert"]


def test_every_alert_has_a_page_that_says_what_to_do() -> None:
    for rule in _rules():
        page, _, heading = rule["annotations"]["runbook_url"].partition("#")
        text = (ROOT / page).read_text("utf-8")
        headings = [re.sub(r"[^a-z0-9]+", "-", one.lower()).strip("-") for one in re.findall(r"^#+ (.*)$", text, re.M)]
        assert not heading or heading in headings, f"{rule['alert']}: {page} has no {heading}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all that we tell."""
    settings = load_settings("demo", tmp_path_factory.mktemp("workspace"))
    run = Run(settings)
    run.catalog.commit(photos=[PhotoRow("ingest", "", "a", "folder", "a.png", "kept")])
    note_run(run.store, "ingest", Outcome.FINISHED, 1.0)
    service = ServiceMetrics(settings)
    service.read()
    assert not service.problem
    families = [*service.collect(), *MetricsServer(0, "run")._registry.collect()]
    return {family.name + ("_total" if family.type == "counter" else "") for family in families}


def test_all_that_rules_and_dashboards_ask_for_is_told(exported: set[str]) -> None:
    known = exported | RAY | {"up"}
    for where, ask in _asked():
        missing = _names(ask) - known
        assert not missing, f"{where} asks for {missing}: {ask}"


@needs_prometheus
def test_rays_head_names_its_machines_and_they_answer(tmp_path: Path) -> None:
    """A real head with a token, a real Prometheus with the shipped configuration."""
    (folder := tmp_path / "prometheus").mkdir()
    with RayHead(tmp_path / "ray.log") as head:
        where = {"ray": [f"{head.address}/api/prometheus/sd"]}
        with PrometheusServer(folder, where, {"ray_token": head.token}) as prometheus:
            prometheus.until('up{job="ray"} == 1', bool)
            for name in sorted(RAY - {"ray_node_gpus_utilization"}):
                prometheus.until(f'{name}{{job="ray"}}', bool)


def test_all_that_the_service_tells_is_shown(exported: set[str]) -> None:
    """A metric that nobody looks at is none."""
    shown = set().union(*(_names(ask) for _, ask in _asked()))
    assert exported - shown == {"moa_catalog_version"}  # for people who ask which version a run read


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Path) -> None:
    board = json.loads(path.read_text("utf-8"))
    assert board["uid"] == f"moa-{path.stem}" and board["title"] and board["description"]
    assert [one["id"] for one in board["panels"]] == list(range(1, len(board["panels"]) + 1))
    cells = [cell for one in board["panels"] for cell in _cells(one["gridPos"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24  # none lies on another
    for panel in board["panels"]:
        assert panel["title"] and panel["targets"] and panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"


def test_there_is_a_dashboard_of_each_kind() -> None:
    assert [path.stem for path in DASHBOARDS] == ["data-plane", "releases", "training"]


def _cells(place: dict[str, int]) -> list[tuple[int, int]]:
    across, down = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return [(x, y) for x in across for y in down]


def _rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def _asked() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for rule in _rules()]
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            found += [(f"{path.stem}: {panel['title']}", target["expr"]) for target in panel["targets"]]
    return found


def _names(ask: str) -> set[str]:
    """The metrics in a query: what is left without labels, groupings, durations and PromQL's own words."""
    ask = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(without|by|ignoring|on) \([^)]*\)|\"[^\"]*\"|\bignoring\([^)]*\)", " ", ask)
    return {word for word in re.findall(r"[a-z_][a-z0-9_]*", ask) if word not in _WORDS}
