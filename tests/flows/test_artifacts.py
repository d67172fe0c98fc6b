"""Progress and pictures outside of a flow run: the terminal's half."""

import time
from dataclasses import replace

from PIL import Image
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.runtime import flow_run

from flows import artifacts
from preprocessing.catalog import PhotoRow


def test_items_pass_through() -> None:
    assert list(artifacts.tracked(iter([1, 2, 3]), 3, "counting")) == [1, 2, 3]


def test_two_stages_at_once_have_a_bar_each() -> None:
    """They end in any order; a terminal shows one display, and rich refuses a second."""
    with artifacts.Track("one", 2) as one:
        two = artifacts.Track("two", 2).__enter__()
        one.advance()
        two.advance()
    two.advance()
    two.__exit__()
    assert (one.done, two.done) == (1, 2)
    assert list(artifacts.tracked(iter("ab"), 2, "again")) == ["a", "b"]


def test_refusals_are_counted_and_the_first_are_kept() -> None:
    row = PhotoRow("ingest", "", "", "folder", "1.jpg", "refused", "truncated")
    refusals = artifacts.Refusals("ingest", shown=3)
    for rows in ([row, replace(row, status="kept", reason="")], [row] * 4):
        refusals.add(rows)
    assert refusals.count == 5 and len(refusals._rows) == 3
    refusals.show()


def test_what_takes_long_is_shown_beside_a_spinner() -> None:
    with artifacts.console.status("looking"), artifacts.telling() as tell:
        for done in range(3):
            tell("unpacking one", done, 2)
            tell("unpacking another", done, 2)
    with artifacts.telling():
        pass  # nothing was told


def test_nothing_is_sent_without_a_run() -> None:
    artifacts.table("t", [{"a": 1}], "d")
    artifacts.markdown("m", "text")
    artifacts.pictures("p", [Image.new("RGB", (4, 4))], "d")
    artifacts.picture("p", b"not even a picture", "d")
    with artifacts.LiveTable("l", "d", seconds=0.0) as live:
        live.show([{"a": 1}])
        live.show([{"a": 2}])


def test_a_runs_log_says_which_stage_shard_and_photo(prefect_client: SyncPrefectClient) -> None:
    @flow
    def refuses() -> str:
        row = PhotoRow("ingest", "0003", "", "folder", "a/1.jpg", "refused", "truncated", "it ends early")
        refusals = artifacts.Refusals("ingest")
        refusals.add([row])
        refusals.show()
        artifacts.log("4 samples", stage="shard")
        return str(flow_run.id)

    run = refuses()
    deadline = time.monotonic() + 120
    while len(lines := _log(prefect_client, run)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert lines == [
        "refused: truncated, it ends early [stage=ingest shard=0003 photo=a/1.jpg]",
        "4 samples [stage=shard]",
    ]


def _log(client: SyncPrefectClient, run: str) -> list[str]:
    """What the stages said, by the run's id."""
    wanted = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC"}
    return [
        one["message"]
        for one in client.request("POST", "/logs/filter", json=wanted).json()
        if "[stage=" in one["message"]
    ]


def test_contact_sheet_has_room_for_all() -> None:
    red = Image.new("RGB", (10, 20), "red")
    sheet = artifacts.contact_sheet([red] * 5, columns=4, side=16)
    assert sheet.size == (64, 32)
    assert sheet.getpixel((8, 24)) == (255, 0, 0) and sheet.getpixel((60, 30)) == (255, 255, 255)
