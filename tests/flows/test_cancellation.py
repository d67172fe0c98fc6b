"""A flow that is cancelled ends as cancelled, and so does the one that it is part of. Jobs: `tests/faults`."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun
from prefect.states import Cancelling
from prefect.testing.utilities import prefect_test_harness

from flows.cancellation import Cancellation, FlowCancelled, stage_flow, stop_jobs
from infra.settings import load_settings

seen: dict[str, Any] = {}  # by the flows below


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


@stage_flow("inner")
def inner() -> str:
    """Ends when whoever it is part of is cancelled."""
    cancellation = Cancellation()
    seen["before"] = cancellation.asked(now=True)
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    seen["inner"] = context.flow_run.id
    get_client(sync_client=True).set_flow_run_state(seen["outer"], Cancelling())
    if cancellation.asked(now=True):
        raise FlowCancelled("cancelled, and with it the job x")
    return "not cancelled"


@stage_flow("outer")
def outer() -> str:
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    seen["outer"] = context.flow_run.id
    return str(inner())


def test_both_end_as_cancelled(prefect: None) -> None:
    with pytest.raises(CancelledRun, match="with it the job x"):
        outer()
    assert seen["before"] is False
    states = [get_client(sync_client=True).read_flow_run(seen[name]).state for name in ("inner", "outer")]
    assert [state is not None and state.is_cancelled() for state in states] == [True, True]


def test_outside_a_run_nothing_is_cancelled() -> None:
    assert Cancellation().asked(now=True) is False
    with pytest.raises(FlowCancelled):
        stage_flow("alone")(_cancelled).fn()


def test_the_hook_has_nothing_to_do_where_nothing_is_sent() -> None:
    class Run:
        id = "x"
        parameters = {"settings": load_settings("demo").model_dump(mode="json")}

    stop_jobs(None, Run, None)


def _cancelled() -> None:
    raise FlowCancelled("x")
