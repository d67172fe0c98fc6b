"""A flow that is cancelled in Prefect stops what it waits for, and ends as cancelled.

Prefect has two ways. A run that its runner started gets a signal, and the runner calls `on_cancellation` afterwards; to
a run that was started by hand nothing happens but its state, so whoever waits must look at that.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import httpx
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from flows import artifacts, job_records
from flows.prefect_patience import patient_clients
from flows.stage_log import Outcome, noted
from infra.access_log import note_access
from infra.errors import UserError
from infra.ray_jobs import Away, JobServer, is_dashboard
from infra.settings import Settings
from infra.storage import ObjectStore, open_store

_LOOK_SECONDS = 3.0  # between two questions to Prefect


class FlowCancelled(UserError):
    """The flow was cancelled in Prefect."""


class Cancellation:
    """Whether the flow run that this is made in, or the one that it is part of, is being cancelled."""

    def __init__(self) -> None:
        context = FlowRunContext.get()
        own = None if context is None else context.flow_run
        self._runs: list[Any] = []
        if own is not None:
            from prefect.runtime import flow_run

            self._runs = list(dict.fromkeys([str(own.id), str(flow_run.root_flow_run_id or own.id)]))
        self._looked = time.monotonic()
        self._client = get_client(sync_client=True) if self._runs else None

    def note(self, store: ObjectStore, attempt: job_records.Attempt) -> None:
        """Write down who waits, for `stop_jobs`, which has nothing but the flow run."""
        for run in self._runs:
            store.put(attempt.key(f"waiting/{run}"), b"{}")

    def asked(self, now: bool = False) -> bool:
        """Whether somebody asked for it; Prefect is asked every few seconds, or `now`."""
        if self._client is None or (not now and time.monotonic() - self._looked < _LOOK_SECONDS):
            return False
        self._looked = time.monotonic()
        try:
            states = [self._client.read_flow_run(run).state for run in self._runs]
        except httpx.HTTPError:
            return False  # a page that is away is no reason to end
        return any(state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states)


def stop_jobs(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook: end the jobs for which a cancelled flow run waited. Its process may be gone by now."""
    if "settings" in flow_run.parameters:
        settings = Settings.model_validate(flow_run.parameters["settings"])
    else:  # a deployment's form
        from flows.deployed import settings_of

        settings = settings_of(flow_run.parameters)
    if not is_dashboard(settings.ray.address):
        return
    server = JobServer(settings.ray.address)
    store = open_store(settings.store_root, settings.storage.endpoint_url)
    for attempt in job_records.waited_for_by(store, str(flow_run.id)):
        try:
            server.stop(attempt.job_id)
        except Away as error:
            artifacts.console.print(f"the job {attempt.job_id} could not be stopped ({error})", markup=False)


def stage_flow(name: str) -> Callable[[Callable[..., Any]], Any]:
    """`prefect.flow` for what may wait for a cluster: cancelled, it stops its jobs and ends as cancelled."""

    def decorated(body: Callable[..., Any]) -> Any:
        @flow(name=name, on_cancellation=[stop_jobs])
        @wraps(body)
        def run(*arguments: Any, **named: Any) -> Any:
            context = FlowRunContext.get()
            if context is None:  # in a job on a cluster: whoever waits for it has the flow
                return body(*arguments, **named)
            settings = arguments[0] if arguments else named.get("settings")
            with patient_clients(), noted(name, settings) as ended:
                if isinstance(settings, Settings):
                    run_id = str(context.flow_run.id) if context.flow_run else ""
                    note_access(open_store(settings.store_root, settings.storage.endpoint_url), name, run=run_id)
                try:
                    return body(*arguments, **named)
                except (FlowCancelled, CancelledRun) as error:
                    ended.append(Outcome.STOPPED)
                    return Cancelled(message=str(error))

        return run

    return decorated
