"""What Prefect does by itself for a model: starts a run when photos came, ends what no longer lives, tells people.

`moa deploy` writes them, under names that begin with "moa/MODEL: ". Those are its own: what is not wanted any more is
deleted there. Whether one is switched off on Prefect's page is the operator's, and stays.

A server of one's own has no automation that notices a run whose process is gone. The engine of each run says every
`service.heartbeat_seconds` that it lives; after three of these without a word, and without an end, the run is Crashed.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture

from flows import events
from flows.deploy import Change, Deployment, model_tag
from infra.errors import UserError
from infra.settings import Settings

_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Refused", "TimedOut")
_STARTS = "new photos start "
_MISSED = 3  # heartbeats: one may be late on a loaded machine
# What is told: name -> (sentence for people, as Prefect's template).
_RUN_SAYS = (
    "moa: the run {{ flow_run.name }} of {{ deployment.name }} ({{ flow.name }}) is {{ flow_run.state.name }}: "
    "{{ flow_run.state.message }} {{ flow_run|ui_url }}"
)
_EVENT_SAYS = "moa: {{ event.payload['says'] }}"


def wanted_automations(
    settings: Settings, deployments: Sequence[Deployment], ids: Mapping[str, Any], block: Any
) -> list[AutomationCore]:
    """All of a model's. `ids`: of the deployments; `block`: of the one that tells people, None = nobody is told."""
    service = settings.service
    model = events.resource(settings)["prefect.resource.id"]
    ours = {"prefect.resource.id": f"prefect.tag.{model_tag(settings)}", "prefect.resource.role": "tag"}
    found = [
        _automation(
            settings,
            f"{_STARTS}{one.flow}",
            EventTrigger(expect=set(trigger["expect"]), match={"prefect.resource.id": model}),
            RunDeployment(deployment_id=ids[one.full_name]),
        )
        for one in deployments
        for trigger in one.triggers
        if ids[one.full_name] is not None
    ]
    within = timedelta(seconds=_MISSED * service.heartbeat_seconds)
    ends = {f"prefect.flow-run.{state}" for state in _ENDS}
    zombie = EventTrigger(
        after={"prefect.flow-run.heartbeat"},
        expect={"prefect.flow-run.heartbeat", *ends},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=ours,
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        within=within,
    )
    message = (
        f"Nothing was heard of its process for {within.total_seconds():.0f} s: it was killed, or its machine is gone."
    )
    found.append(
        _automation(
            settings,
            "a run that no longer lives is crashed",
            zombie,
            ChangeFlowRunState(state=StateType.CRASHED, message=message),
        )
    )
    if block is None:
        return found
    runs = {"prefect.resource.id": "prefect.flow-run.*"}
    failed = EventTrigger(
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
        match=runs,
        match_related=ours,
    )
    late = EventTrigger(expect={"prefect.flow-run.Late"}, match=runs, match_related=ours)
    silent = EventTrigger(
        expect={events.INGESTED},
        match={"prefect.resource.id": model},
        posture=Posture.Proactive,
        within=timedelta(days=service.silent_days),
    )
    silence = f"moa: no photo was ingested for {service.silent_days:g} days by the model {settings.publish.model}."
    told = {
        "a run failed": (failed, _RUN_SAYS),
        "a run is late": (late, _RUN_SAYS + " No worker took it: is one at work in its pool?"),
        "nothing was ingested": (silent, silence),
        "a batch was refused": (
            EventTrigger(expect={events.BATCH_REFUSED}, match={"prefect.resource.id": model}),
            _EVENT_SAYS,
        ),
        "the gate refused": (
            EventTrigger(expect={events.GATE_REFUSED}, match={"prefect.resource.id": model}),
            _EVENT_SAYS,
        ),
    }
    return found + [
        _automation(settings, name, trigger, _telling(settings, block, says)) for name, (trigger, says) in told.items()
    ]


def started_by_arrivals(client: SyncPrefectClient, settings: Settings) -> list[UUID]:
    """The deployments that new photos start on this server, by automations that nobody has switched off."""
    return [
        action.deployment_id
        for one in client.read_automations()
        if one.enabled and one.name.startswith(f"{_prefix(settings)}{_STARTS}")
        for action in one.actions
        if isinstance(action, RunDeployment) and action.deployment_id is not None
    ]


def _automation(settings: Settings, name: str, trigger: EventTrigger, action: Any) -> AutomationCore:
    return AutomationCore(name=f"{_prefix(settings)}{name}", description="", trigger=trigger, actions=[action])


def _prefix(settings: Settings) -> str:
    return f"moa/{settings.publish.model}: "


def _telling(settings: Settings, block: Any, says: str) -> Any:
    if settings.service.notify == "webhook":
        # The sentence is made first and then quoted: what stands in it cannot break out of the JSON.
        # Where nothing happened, and that is told, there is no event.
        event = "{{ event.event|default('')|tojson }}"
        payload = "{% set says %}" + says + '{% endset %}{"text": {{ says|tojson }}, "event": ' + event + "}"
        return CallWebhook(block_document_id=block, payload=payload)
    return SendNotification(block_document_id=block, subject="moa", body=says)


def bring_automations(
    client: SyncPrefectClient,
    settings: Settings,
    deployments: Sequence[Deployment],
    ids: Mapping[str, Any],
    dry_run: bool,
) -> list[Change]:
    """Make, change and delete the model's automations, and the block that tells people."""
    changes, block = _bring_block(client, settings, dry_run)
    there: dict[str, Automation] = {}
    for one in client.read_automations():
        if one.name.startswith(_prefix(settings)):
            there[one.name] = one
    for wanted in wanted_automations(settings, deployments, ids, block):
        existing = there.pop(wanted.name, None)
        if existing is None:
            if not dry_run:
                client.create_automation(wanted)
            changes.append(Change("automation", wanted.name, "created"))
        elif differs := _differences(wanted, existing):
            if not dry_run:
                client.update_automation(existing.id, wanted.model_copy(update={"enabled": existing.enabled}))
            changes.append(Change("automation", wanted.name, f"changed: {', '.join(differs)}"))
        else:
            changes.append(Change("automation", wanted.name, "unchanged"))
    for name, one in there.items():
        if not dry_run:
            client.delete_automation(one.id)
        changes.append(Change("automation", name, "deleted"))
    return changes


def _differences(wanted: AutomationCore, there: Automation) -> list[str]:
    want, have = wanted.model_dump(mode="json"), there.model_dump(mode="json")
    return [name for name in ("description", "trigger", "actions") if _sorted(want[name]) != _sorted(have[name])]


def _sorted(value: Any) -> Any:
    """Sets come as lists in any order; ids that the server gave are its own."""
    if isinstance(value, dict):
        return {name: _sorted(inner) for name, inner in value.items() if name != "id"}
    if isinstance(value, list):
        return sorted((_sorted(inner) for inner in value), key=repr)
    return value


def _bring_block(client: SyncPrefectClient, settings: Settings, dry_run: bool) -> tuple[list[Change], Any]:
    """The block with the address or key that the environment holds; the one that is there where it holds none."""
    service = settings.service
    if not service.notify:
        return [], None
    name = f"moa-{settings.publish.model}-{service.notify}"
    wanted, secret = _block(settings), os.environ.get(service.notify_secret)
    there = _load(type(wanted), name)
    if there is None and not secret:
        raise UserError(
            f'service.notify is "{service.notify}" and {service.notify_secret} is not set: export it with the '
            f"{'key of SendGrid' if service.notify == 'email' else 'address of the webhook'}."
        )
    if there is not None and (not secret or _secrets(there) == _secrets(wanted)):
        return [Change("block", name, "unchanged")], there._block_document_id
    if dry_run:
        said = "created" if there is None else "changed: its secret"
        return [Change("block", name, said)], there._block_document_id if there is not None else UUID(int=0)
    made = wanted.save(name, overwrite=True)
    return [Change("block", name, "created" if there is None else "changed: its secret")], made


def _block(settings: Settings) -> Block:
    from prefect.blocks.notifications import SendgridEmail, SlackWebhook
    from prefect.blocks.webhook import Webhook
    from pydantic import SecretStr

    service = settings.service
    secret = SecretStr(os.environ.get(service.notify_secret, ""))
    if service.notify == "webhook":
        return Webhook(url=secret)
    if service.notify == "slack":
        return SlackWebhook(url=secret)
    if not (service.notify_sender and service.notify_to):
        raise UserError("For e-mails set service.notify_sender and service.notify_to.")
    return SendgridEmail(api_key=secret, sender_email=service.notify_sender, to_emails=list(service.notify_to))


def _secrets(block: Any) -> tuple[Any, ...]:
    """What of a block the settings and the environment decide."""
    if hasattr(block, "url"):
        return (block.url.get_secret_value(),)
    return block.api_key.get_secret_value(), block.sender_email, list(block.to_emails)


def _load(kind: type[Block], name: str) -> Any:
    try:
        return kind.load(name)
    except ValueError:  # no such block
        return None
