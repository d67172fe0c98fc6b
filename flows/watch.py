"""`moa watch`: says when new photos are there, starts again what ended badly, and frees slots that nobody holds. Runs
for years; may be killed at any moment.

An event of Prefect starts the deployment. Its id is the batch's name, which is written down before it is sent; after a
restart Prefect is asked whether it has that event. So none is lost, and none is told twice. (Where both the watcher was
killed and Prefect forgot the event in between, a retraining starts once more, finds nothing new and says so.)

A server takes events into its memory: killed in the second after, it has forgotten them, or what they were to start. So
a batch counts as told when a run came of it; where none comes, the watcher starts it. Where people have switched the
automation off, or there is none, telling is all.
"""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
)
from prefect.events import Event

from flows import events
from flows.automations import started_by_arrivals
from flows.deploy import model_tag
from flows.quantities import in_bytes
from flows.run import Run
from flows.slots import Slots
from flows.unfinished import Unfinished
from infra.arrivals import Arrivals, Batch, listing, look
from infra.errors import UserError
from infra.settings import Settings

_LOOK_AFTER_SECONDS = 30.0  # runs and their slots
_TAKEN_UP_SECONDS = 30.0  # an automation acts within a second; a loaded server takes longer
_AWAY_SECONDS = 5.0  # between two attempts to reach a server or a store that is away


def watched_place(settings: Settings) -> str:
    """The folder, archive or s3://bucket/prefix that the source reads. Raises UserError where it has none."""
    spec = Run(settings).source_spec(settings.ingest.source)
    _, colon, place = spec.partition(":")
    if not colon or not place:
        raise UserError(f"There is no place to watch in ingest.source {spec!r}: write KIND:PATH.")
    return place


class Watcher:
    """One place, one model, one Prefect server."""

    def __init__(self, settings: Settings, client: SyncPrefectClient, say: Callable[[str], None]) -> None:
        service = settings.service
        self.settings, self.client, self._say = settings, client, say
        self.place = watched_place(settings)
        name = "".join(letter if letter.isalnum() else "-" for letter in self.place)[-80:].strip("-")
        folder = settings.watch_folder
        self.arrivals = Arrivals(folder / f"{name}.sqlite", service.quiet_seconds, service.longest_wait_seconds)
        self._beat = folder / "beat.json"
        self._slots = Slots(client, model_tag(settings), service.pending_minutes * 60)
        self._unfinished = Unfinished(client, settings)
        self._runs_due = 0.0
        self._sent: dict[str, float] = {}  # the batch that this process has told of, and when

    def step(self) -> Batch | None:
        """One look; the batch that counts as told since."""
        found = look(listing(self.place, self.settings.storage.endpoint_url))
        batch = self.arrivals.due(time.time(), found)
        told = None
        if batch is not None:
            self._tell(batch)
            if self._taken_up(batch):
                self.arrivals.told(batch)
                told = batch
        if time.monotonic() >= self._runs_due:
            every = min(_LOOK_AFTER_SECONDS, self.settings.service.again_minutes * 60)
            self._runs_due = time.monotonic() + every
            for sentence in [*self._slots.look(), *self._unfinished.look()]:
                self._say(sentence)
        self._note(found.total)
        return told

    def _tell(self, batch: Batch) -> None:
        if batch.name in self._sent:
            return
        says = f"{batch.count} new in {self.place} ({in_bytes(batch.bytes)})"
        event = Event(
            id=UUID(batch.name),
            event=events.ARRIVED,
            occurred=datetime.fromtimestamp(batch.ended, UTC),
            resource=events.resource(self.settings),
            payload={
                "says": says,
                "place": self.place,
                "count": batch.count,
                "bytes": batch.bytes,
                "in_all": batch.total,
            },
        )
        if not self._has(event.id):
            answer = self.client.request("POST", "/events", json=[event.model_dump(mode="json")])
            answer.raise_for_status()
        self._sent = {batch.name: time.monotonic()}
        self._say(f"{says}: told")

    def _taken_up(self, batch: Batch) -> bool:
        """Whether runs came of it, or need not; after a while they are started here."""
        since = datetime.fromtimestamp(batch.ended, UTC)
        missing = [one for one in started_by_arrivals(self.client, self.settings) if not self._has_run(one, since)]
        if not missing:
            return True
        if time.monotonic() - self._sent[batch.name] < _TAKEN_UP_SECONDS:
            return False
        for deployment in missing:
            run = self.client.create_flow_run_from_deployment(deployment, idempotency_key=batch.name)
            self._say(f"No run came of it: started as {run.name}.")
        return True

    def _has_run(self, deployment: UUID, since: datetime) -> bool:
        due = FlowRunFilterExpectedStartTime(after_=since, before_=datetime.now(UTC) + timedelta(seconds=60))
        of_this = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        wanted = FlowRunFilter(expected_start_time=due)
        return bool(self.client.read_flow_runs(flow_run_filter=wanted, deployment_filter=of_this, limit=1))

    def _has(self, event: UUID) -> bool:
        wanted = {"filter": {"id": {"id": [str(event)]}}, "limit": 1}
        answer = self.client.request("POST", "/events/filter", json=wanted)
        return bool(answer.json()["events"])

    def _note(self, total: int) -> None:
        """For `moa status` and for who started it: that it lives, and what it sees."""
        about = {"time": time.time(), "pid": os.getpid(), "place": self.place, "objects": total}
        partial = self._beat.with_suffix(".partial")
        partial.write_text(json.dumps(about), "utf-8")
        os.replace(partial, self._beat)


def watch(settings: Settings, say: Callable[[str], None], rounds: int | None = None) -> None:
    """Look until the process ends, or so many times. A server or a store that is away is waited for."""
    with get_client(sync_client=True) as client:
        watcher = Watcher(settings, client, say)
        say(f"watching {watcher.place}, every {settings.service.look_seconds:g} s")
        away = ""
        while rounds is None or rounds > 0:
            try:
                watcher.step()
                away, pause = "", settings.service.look_seconds
            except (httpx.HTTPError, UserError) as error:
                if str(error) != away:  # once, not every few seconds for a night
                    say(f"not now ({error}); it is tried again")
                away, pause = str(error), _AWAY_SECONDS
            rounds = None if rounds is None else rounds - 1
            if rounds != 0:
                time.sleep(pause)
