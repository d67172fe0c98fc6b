"""`moa deploy`: deployments, work pool, automations and the block that tells people, as files and settings want them.

All is compared with what the server has: a second time nothing is changed, and --dry-run only says what would be.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.utilities.callables import parameter_schema

from infra.errors import UserError
from infra.settings import Settings

SHIPPED = "infra/prefect.yaml"


@dataclass(frozen=True)
class Change:
    """One thing on the server: what it is, and what was, or would be, done with it."""

    kind: str
    name: str
    done: str
    """ "created", "changed: …", "deleted" or "unchanged"."""


@dataclass(frozen=True)
class Deployment:
    """One entry of the file, for one model."""

    flow: str
    name: str
    entrypoint: str
    description: str
    parameters: dict[str, Any]
    tags: list[str]
    schedules: list[dict[str, Any]]
    triggers: list[dict[str, Any]]
    concurrency: dict[str, Any]
    pool: str
    schema: dict[str, Any] = field(repr=False)

    @property
    def full_name(self) -> str:
        """As Prefect's commands take it."""
        return f"{self.flow}/{self.name}"


def model_tag(settings: Settings) -> str:
    """What all deployments of a model, and so their runs, are tagged with."""
    return f"moa-model-{settings.publish.model}"


def wanted_deployments(settings: Settings, parameters: Mapping[str, Any], file: Path | None = None) -> list[Deployment]:
    """The file's deployments, named after the model and with these parameters. UserError for a file that is none."""
    try:
        text = file.read_text("utf-8") if file else files("infra").joinpath("prefect.yaml").read_text("utf-8")
        entries = yaml.safe_load(text)["deployments"]
        return [_deployment(settings, entry, parameters) for entry in entries]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{file or SHIPPED} is no list of deployments ({said}): mend it by the shipped one.") from error


def _deployment(settings: Settings, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> Deployment:
    module, _, name = entry["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), name)
    schema = parameter_schema(flow).model_dump(mode="json")
    known = schema["properties"]
    return Deployment(
        flow=flow.name,
        name=settings.publish.model,
        entrypoint=entry["entrypoint"],
        description=entry.get("description") or (flow.__doc__ or "").strip().partition("\n")[0],
        parameters={**entry.get("parameters", {}), **{k: v for k, v in parameters.items() if k in known}},
        tags=sorted({*entry.get("tags", []), "moa", model_tag(settings)}),
        schedules=list(entry.get("schedules", [])),
        triggers=list(entry.get("triggers", [])),
        concurrency=dict(entry.get("concurrency_limit") or {}),
        pool=settings.service.pool,
        schema=schema,
    )


def deploy(
    client: SyncPrefectClient,
    settings: Settings,
    parameters: Mapping[str, Any],
    file: Path | None = None,
    dry_run: bool = False,
) -> list[Change]:
    """Bring the server to what is wanted; what that was. Raises UserError."""
    from flows.automations import bring_automations

    wanted = wanted_deployments(settings, parameters, file)
    changes = [_bring_pool(client, settings, dry_run)]
    ids: dict[str, Any] = {}
    for one in wanted:
        change, ids[one.full_name] = _bring_deployment(client, settings, one, dry_run)
        changes.append(change)
    return changes + bring_automations(client, settings, wanted, ids, dry_run)


def _bring_pool(client: SyncPrefectClient, settings: Settings, dry_run: bool) -> Change:
    name, kind = settings.service.pool, settings.service.pool_type
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        if not dry_run:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=_template(kind)))
        return Change("work pool", name, "created")
    if there.type != kind:
        raise UserError(
            f"The work pool {name!r} is of type {there.type!r}, and {kind!r} is wanted: set service.pool to another "
            "name, or delete that pool."
        )
    return Change("work pool", name, "unchanged")


def _template(kind: str) -> dict[str, Any]:
    """A pool's form as Prefect ships it, also where the worker's own package is not here. (The server would ask the
    internet first.) A process worker brings its own."""
    if kind == "process":
        return {}
    views = files("prefect.server.api").joinpath("collections_data", "views", "aggregate-worker-metadata.json")
    workers = json.loads(views.read_text("utf-8"))[f"prefect-{kind}"]
    return dict(workers[kind]["default_base_job_configuration"])


def _bring_deployment(
    client: SyncPrefectClient, settings: Settings, wanted: Deployment, dry_run: bool
) -> tuple[Change, Any]:
    try:
        there: Any = client.read_deployment_by_name(wanted.full_name)
    except ObjectNotFound:
        if dry_run:
            return Change("deployment", wanted.full_name, "created"), None
        made = client.create_deployment(
            flow_id=client.create_flow_from_name(wanted.flow),
            name=wanted.name,
            enforce_parameter_schema=True,
            schedules=_schedules(wanted),
            concurrency_limit=wanted.concurrency.get("limit"),
            concurrency_options=_options(settings, wanted),
            **_plain(wanted),
        )
        return Change("deployment", wanted.full_name, "created"), made
    differs = _differences(settings, wanted, there)
    if differs and not dry_run:
        client.update_deployment(
            there.id,
            DeploymentUpdate(
                enforce_parameter_schema=True,
                schedules=_schedules(wanted, DeploymentScheduleUpdate),
                concurrency_limit=wanted.concurrency.get("limit"),
                concurrency_options=_options(settings, wanted),
                **_plain(wanted),
            ),
        )
    said = f"changed: {', '.join(differs)}" if differs else "unchanged"
    return Change("deployment", wanted.full_name, said), there.id


def _plain(wanted: Deployment) -> dict[str, Any]:
    return {
        "entrypoint": wanted.entrypoint,
        "description": wanted.description,
        "parameters": wanted.parameters,
        "tags": wanted.tags,
        "work_pool_name": wanted.pool,
        "parameter_openapi_schema": wanted.schema,
    }


def _schedules(wanted: Deployment, kind: Any = DeploymentScheduleCreate) -> list[Any]:
    return [
        kind(schedule=CronSchedule(cron=one["cron"], timezone=one.get("timezone", "UTC")), slug=one["slug"])
        for one in wanted.schedules
    ]


def _options(settings: Settings, wanted: Deployment) -> ConcurrencyOptions | None:
    if not wanted.concurrency:
        return None
    strategy = ConcurrencyLimitStrategy(wanted.concurrency.get("collision_strategy", "ENQUEUE"))
    grace = min(max(round(settings.service.pending_minutes * 60), 60), 86_400)  # Prefect's bounds
    return ConcurrencyOptions(collision_strategy=strategy, grace_period_seconds=grace)


def _differences(settings: Settings, wanted: Deployment, there: Any) -> list[str]:
    """What of a deployment is not as wanted; whether a schedule is paused is the operator's."""
    options = _options(settings, wanted)
    limit = there.global_concurrency_limit
    pairs = {
        "entrypoint": (wanted.entrypoint, there.entrypoint),
        "description": (wanted.description, there.description),
        "parameters": (wanted.parameters, there.parameters),
        "tags": (wanted.tags, sorted(there.tags)),
        "work pool": (wanted.pool, there.work_pool_name),
        "form": (_ordered(wanted.schema), _ordered(there.parameter_openapi_schema)),
        "schedules": (
            sorted((one["slug"], one["cron"], one.get("timezone", "UTC")) for one in wanted.schedules),
            sorted((one.slug or "", _cron(one.schedule), one.schedule.timezone or "UTC") for one in there.schedules),
        ),
        "concurrency limit": (wanted.concurrency.get("limit"), limit.limit if limit else None),
        "concurrency options": (
            options.model_dump(mode="json") if options else None,
            there.concurrency_options.model_dump(mode="json") if there.concurrency_options else None,
        ),
    }
    return [name for name, (want, have) in pairs.items() if want != have]


def _cron(schedule: Any) -> str:
    return str(getattr(schedule, "cron", schedule))


def _ordered(schema: Any) -> str:
    return json.dumps(schema if isinstance(schema, dict) else schema.model_dump(mode="json"), sort_keys=True)
