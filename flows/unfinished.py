"""A retraining that crashed or failed is started again: no photo waits for the next night, or for somebody to come by.

What it had done stays done, so the new run goes on where the old one ended. Each time in a row the pause before it is
twice as long, and after so many times people have to look: they were told of each.
"""

import time
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from infra.settings import Settings

_ENDED = [StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
_GOING = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING]
_MOST_WAITING = 200  # what a schedule has made already is far fewer


class Unfinished:
    """Looks again and again; what it needs to know is on the server."""

    def __init__(self, client: SyncPrefectClient, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._client, self._clock = client, clock
        self._deployment = f"retrain/{settings.publish.model}"
        self._pause, self._times = settings.service.again_minutes * 60, settings.service.again_times

    def look(self) -> list[str]:
        """Start what is due; a sentence where something was."""
        try:
            deployment = self._client.read_deployment_by_name(self._deployment)
        except ObjectNotFound:
            return []
        ended = self._runs(deployment, _ENDED, FlowRunSort.END_TIME_DESC, self._times + 1)
        failed = list(takewhile(_ended_badly, ended))
        if not 0 < len(failed) <= self._times or self._goes_on(deployment):
            return []
        last = failed[0]
        if self._clock() - last.state.timestamp.timestamp() < self._pause * 2 ** (len(failed) - 1):
            return []
        # By the key the server makes one run, however often it is asked for: its asker may be killed meanwhile.
        again = self._client.create_flow_run_from_deployment(
            deployment.id, parameters=last.parameters, idempotency_key=f"again-{last.id}"
        )
        return [
            f"The run {last.name} ended as {last.state.name} ({last.state.message}): started again as {again.name}, "
            f"{len(failed)} of at most {self._times} times in a row."
        ]

    def _goes_on(self, deployment: Any) -> bool:
        """Whether a run is at work, or due: it takes all photos that are there."""
        if self._runs(deployment, _GOING, FlowRunSort.ID_DESC, 1):
            return True
        waiting = self._runs(deployment, [StateType.SCHEDULED], FlowRunSort.EXPECTED_START_TIME_ASC, _MOST_WAITING)
        return any(run.expected_start_time.timestamp() <= self._clock() for run in waiting)

    def _runs(self, deployment: Any, states: list[StateType], sort: FlowRunSort, most: int) -> list[Any]:
        return self._client.read_flow_runs(
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states))),
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            sort=sort,
            limit=most,
        )


def _ended_badly(run: Any) -> bool:
    """Not what people decided, or should: a batch that was refused, a run that was cancelled."""
    return run.state.type in (StateType.CRASHED, StateType.FAILED) and run.state.name != "Refused"
