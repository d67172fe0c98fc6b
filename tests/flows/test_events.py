"""What stages tell Prefect, on a real server."""

import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient

from flows import events
from flows.publish import _tell
from infra.registry import Release
from infra.settings import load_settings


def _told(client: SyncPrefectClient, model: str, count: int) -> list[dict[str, Any]]:
    wanted = {"filter": {"resource": {"id": [f"moa.model.{model}"]}, "order": "ASC"}}
    deadline = time.monotonic() + 120
    while len(found := client.request("POST", "/events/filter", json=wanted).json()["events"]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def test_a_release_its_promotion_and_a_refusal_each_once(prefect_client: SyncPrefectClient, tmp_path: Path) -> None:
    settings = load_settings("demo", tmp_path, {"publish.model": "teller"})
    good, bad = {"promote": True, "reasons": []}, {"promote": False, "reasons": ["identity is worse"]}

    @flow(name="tells")
    def tells() -> None:
        _tell(settings, Release(1, "a" * 16), good, new=True, moved=True)
        _tell(settings, Release(1, "a" * 16), good, new=False, moved=False)  # the stage is repeated
        _tell(settings, Release(2, "b" * 16), bad, new=True, moved=False)
        events.tell(settings, "the.last")

    tells()
    found = _told(prefect_client, "teller", 5)
    names = [events.RELEASED, events.PROMOTED, events.RELEASED, events.GATE_REFUSED, "the.last"]
    assert [one["event"] for one in found] == names
    assert found[3]["payload"]["says"] == "The gate refused teller@2, production stays where it was: identity is worse"
    roles = {one["prefect.resource.role"] for one in found[0]["related"]}
    assert {"flow", "flow-run"} <= roles  # whoever reads the event finds the run


def test_outside_of_a_run_nobody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    monkeypatch.setattr("prefect.events.emit_event", lambda event, **_: told.append(event))
    events.tell(load_settings("demo", tmp_path), events.RELEASED)
    assert told == []
