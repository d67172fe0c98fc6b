"""Slots of Prefect's deployments that nobody holds any more are freed, so that the next run can start.

A deployment of which one run at a time may go on has a slot. Prefect gives it back when the run ends, and where its
holder died, when its lease ends: 300 s after the last sign of life. Two things it leaves alone. A run that was to start
and whose process never came stays PENDING for ever. And where the server lost its leases (they are in its memory unless
it is told otherwise) or a run was deleted on its page, the slot is counted as taken for ever.
"""

import time
from collections.abc import Callable
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    DeploymentFilterTags,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

_LEASE_SECONDS = 300.0  # the longest that a lease lives without a sign of life
_HOLDING = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]


class Slots:
    """Looks again and again; what it saw before tells what is stale and what is just on its way."""

    def __init__(
        self,
        client: SyncPrefectClient,
        tag: str,
        pending_seconds: float,
        lease_seconds: float = _LEASE_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``tag``: of the deployments that are looked after. ``pending_seconds``: that a run may take to start."""
        self._client, self._tag, self._pending, self._clock = client, tag, pending_seconds, clock
        self._lease = lease_seconds
        self._leaked_since: dict[str, float] = {}

    def look(self) -> list[str]:
        """Free what is stale; a sentence for each."""
        said: list[str] = []
        filtered = DeploymentFilter(tags=DeploymentFilterTags(all_=[self._tag]))
        for deployment in self._client.read_deployments(deployment_filter=filtered, limit=200):
            said += self._end_stuck(deployment)
            if deployment.global_concurrency_limit is not None:
                said += self._free_leaked(deployment)
        return said

    def _runs(self, deployment: Any, states: list[StateType]) -> list[Any]:
        of_these = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
        of_this = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        return self._client.read_flow_runs(flow_run_filter=of_these, deployment_filter=of_this, limit=200)

    def _end_stuck(self, deployment: Any) -> list[str]:
        """Crash what has been PENDING for too long: the server then gives its slot back."""
        said = []
        for run in self._runs(deployment, [StateType.PENDING]):
            waited = self._clock() - run.state.timestamp.timestamp()
            if waited < self._pending:
                continue
            message = f"It was to start {waited / 60:.0f} min ago and its process never came."
            self._client.set_flow_run_state(run.id, Crashed(message=message), force=True)
            said.append(f"The run {run.name} of {deployment.name} was ended, and its slot is free: {message}")
        return said

    def _free_leaked(self, deployment: Any) -> list[str]:
        """Set the count right where for longer than a lease lives more slots are taken than there are runs.

        The count is read before the runs: what starts in between makes fewer slots look taken, never more.
        """
        limit = self._client.read_global_concurrency_limit_by_name(deployment.global_concurrency_limit.name)
        holders = len(self._runs(deployment, _HOLDING))
        if limit.active_slots <= holders:
            self._leaked_since.pop(limit.name, None)
            return []
        since = self._leaked_since.setdefault(limit.name, self._clock())
        if self._clock() - since < self._lease:
            return []
        self._client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=holders))
        self._leaked_since.pop(limit.name, None)
        return [
            f"A slot of {deployment.name} was counted as taken and no run held it: {limit.active_slots} -> {holders}."
        ]
