"""On a real Prefect server."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError

from flows.deploy import deploy, wanted_deployments
from infra.errors import UserError
from infra.settings import Settings, load_settings


def _settings(model: str, tmp_path: Path, **more: str) -> Settings:
    changes = {f"service.{name}": value for name, value in more.items()}
    return load_settings("demo", tmp_path, {"publish.model": model, "service.pool": f"pool-{model}", **changes})


def _done(found: Any) -> dict[str, str]:
    return {f"{one.kind} {one.name}": one.done for one in found}


def test_a_second_time_nothing_changes_and_what_somebody_changed_is_mended(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings = _settings("twice", tmp_path)
    parameters = {"preset": "demo", "workspace": str(tmp_path), "changes": ["train.steps=3"]}
    planned = _done(deploy(prefect_client, settings, parameters, dry_run=True))
    assert "deployment retrain/twice" in planned and set(planned.values()) == {"created"}
    first = _done(deploy(prefect_client, settings, parameters))
    assert set(first.values()) == {"created"} and planned.keys() <= first.keys()
    assert set(_done(deploy(prefect_client, settings, parameters)).values()) == {"unchanged"}

    there = prefect_client.read_deployment_by_name("retrain/twice")
    assert there.parameters == {"preset": "demo", "workspace": str(tmp_path), "changes": ["train.steps=3"]}
    prefect_client.update_deployment(there.id, DeploymentUpdate(parameters={"preset": "sdxl"}, tags=list(there.tags)))
    again = _done(deploy(prefect_client, settings, parameters))
    assert again.pop("deployment retrain/twice").startswith("changed: parameters")
    assert set(again.values()) == {"unchanged"}
    assert set(_done(deploy(prefect_client, settings, parameters)).values()) == {"unchanged"}


def test_a_retraining_runs_at_night_when_photos_came_and_once_at_a_time(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings = _settings("night", tmp_path)
    deploy(prefect_client, settings, {"preset": "demo"})
    there = prefect_client.read_deployment_by_name("retrain/night")
    assert [(one.schedule.cron, one.schedule.timezone) for one in there.schedules] == [("0 3 * * *", "UTC")]
    assert there.global_concurrency_limit is not None and there.global_concurrency_limit.limit == 1
    assert there.concurrency_options is not None and there.concurrency_options.collision_strategy == "ENQUEUE"
    (automation,) = [one for one in prefect_client.read_automations() if one.name.startswith("moa/night: new photos")]
    assert automation.actions[0].deployment_id == there.id


def test_the_form_says_what_each_field_is_and_the_server_refuses_what_does_not_fit(
    prefect_client: SyncPrefectClient, tmp_path: Path
) -> None:
    settings = _settings("forms", tmp_path)
    for one in wanted_deployments(settings, {"preset": "demo"}):
        for name, field in one.schema["properties"].items():
            assert field["description"] and field["type"], f"{one.full_name} {name}"
    deploy(prefect_client, settings, {"preset": "demo"})
    there = prefect_client.read_deployment_by_name("retrain/forms")
    with pytest.raises(PrefectHTTPStatusError, match="409|422"):
        prefect_client.create_flow_run_from_deployment(there.id, parameters={"from_scratch": "perhaps"})


def test_a_kubernetes_pool_has_prefects_form_for_pods(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    settings = _settings("pods", tmp_path, pool_type="kubernetes")
    deploy(prefect_client, settings, {"preset": "demo"})
    pool = prefect_client.read_work_pool("pool-pods")
    assert pool.type == "kubernetes" and "namespace" in pool.base_job_template["variables"]["properties"]


def test_a_pool_of_another_type_is_refused_in_a_sentence(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    prefect_client.create_work_pool(WorkPoolCreate(name="pool-other", type="kubernetes"))
    with pytest.raises(UserError, match="'pool-other' is of type 'kubernetes'.*service.pool"):
        deploy(prefect_client, _settings("other", tmp_path), {"preset": "demo"})


def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path: Path) -> None:
    settings, file = load_settings("demo", tmp_path), tmp_path / "mine.yaml"
    for text in ("deployments: 3", "deployments: [{entrypoint: flows.nothing.here}]", "{", "other: []"):
        file.write_text(text)
        with pytest.raises(UserError, match="mine.yaml is no list of deployments"):
            wanted_deployments(settings, {}, file)
    with pytest.raises(UserError, match="absent.yaml is no list"):
        wanted_deployments(settings, {}, tmp_path / "absent.yaml")
