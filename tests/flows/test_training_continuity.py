"""What is said of a training that went through, and of one that left something out."""

import re
from pathlib import Path
from typing import Any

import pytest

from flows.training_continuity import continuity, course_for_card, told_course
from flows.training_history import AttemptLog
from infra.errors import UserError
from infra.storage import DirectoryStore

RUN = "0123456789abcdef"
ACCOUNT = {"samples": 1188, "whole_epochs": 2, "begun": 824, "again": 0, "missing": 0, "proven": True}
START = {"attempt": 1, "step": 0, "damaged": []}


def _finished(starts: list[dict[str, Any]] | None = None, skipped: int = 0, **account: Any) -> dict[str, Any]:
    bad = [
        {"step": 7 * number, "fault": "loss nan is not finite", "samples": ["a1", "b2"]} for number in range(skipped)
    ]
    return {"account": ACCOUNT | account, "starts": starts or [START], "skipped": bad, "plan": {"damaged": []}}


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    """One attempt that was killed and one that went through, by other people in other places."""
    store = DirectoryStore(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGNAME", "anna")
        killed = AttemptLog(store, RUN, 0, Path("/home/anna/runs"), seconds=0.0).__enter__()
        killed.started(0, 2, ["node-1"])
        killed.reached(137)
        patch.setenv("LOGNAME", "boris")
        with AttemptLog(store, RUN, 100, Path("/home/boris/runs"), seconds=0.0) as log:
            log.started(100, 1, ["node-2"])
            log.reached(200)
    return store


def test_a_training_that_was_killed_and_went_through_lost_nothing(store: DirectoryStore) -> None:
    told = continuity(store, RUN, _finished())
    assert told is not None and told.whole and told.headline == "Nothing was lost"
    said = " ".join(told.sentences)
    assert "Each of 1,188 samples had exactly one turn in each of 2 whole epochs, and 824 of them" in said
    assert "At least 37 steps after a checkpoint were done again, with the same samples: 101 to 137." in said
    assert "agrees with what the steps in these weights read" in said
    assert "No step was skipped and no shard passed over." in said
    first, second = told.attempts
    assert list(first) == list(second)
    assert (first["by"], first["in"], first["after step"], first["reached"]) == ("anna", "/home/anna/runs", "0", "137")
    assert (
        first["workers"] == "2 on node-1" and "without a word" in first["ended"] and "last heard of" in first["ended"]
    )
    assert (second["by"], second["after step"]) == ("boris", "100") and second["ended"].startswith("finished")
    assert len(told.lines()) == 3 and told.lines()[-1].startswith("Nothing was lost: Each of 1,188")


def test_one_that_ran_in_one_go_is_one_line(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with AttemptLog(store, RUN, 0, tmp_path) as log:
        log.started(0, 1, ["a"])
    told = continuity(store, RUN, _finished(whole_epochs=0, begun=24))
    assert told is not None and told.whole and len(told.lines()) == 1
    assert "24 of 1,188 samples had a turn" in told.lines()[0] and "It ran in one go." in told.lines()[0]


@pytest.mark.parametrize(
    ("finished", "says"),
    [
        (_finished(skipped=1, missing=16), "Step 0 was skipped: loss nan is not finite; its samples: a1, b2."),
        (_finished(skipped=9, missing=144), "So were 4 others."),
        (
            _finished([START, {"attempt": 2, "step": 100, "damaged": ["0007"]}], missing=40, again=30),
            "40 turns were left out and 30 were another sample's second. .*passed over as damaged: 0007",
        ),
        (_finished(proven=False), "do not rely on this training"),
    ],
)
def test_what_was_left_out_is_said(finished: dict[str, Any], says: str, store: DirectoryStore) -> None:
    told = continuity(store, RUN, finished)
    assert told is not None and not told.whole and told.headline == "What was left out"
    assert re.search(says, " ".join(told.sentences))


def test_every_start_of_workers_has_a_row(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    with pytest.raises(UserError), AttemptLog(store, RUN, 0, tmp_path, seconds=0.0) as log:
        log.started(0, 2, ["a", "b"])
        log.reached(30)
        log.started(20, 1, ["a"])
        log.reached(40)
        raise UserError("Mend this.")
    with pytest.raises(UserError), AttemptLog(store, RUN, 40, tmp_path):
        raise UserError("The shard is gone.")
    told = continuity(store, RUN, _finished())
    assert told is not None
    assert [
        (row["attempt"], row["after step"], row["reached"], row["ended"].partition(" (")[0]) for row in told.attempts
    ] == [
        ("1", "0", "30", "a worker or its machine was lost"),
        ("1", "20", "40", "Mend this."),
        ("2", "", "", "The shard is gone."),
    ]


def test_a_card_tells_the_same_and_names_nobody(store: DirectoryStore) -> None:
    course = course_for_card(
        store, RUN, _finished([START, {"attempt": 2, "step": 100, "damaged": ["0007"]}], skipped=2)
    )
    assert (course["attempts"], course["steps_done_again"], course["shards_passed_over"]) == (2, 37, ["0007"])
    told = told_course(course)
    assert told["attempts"] == "2, 37 steps done again" and told["skipped steps"] == "0, 7"
    assert told["shards passed over"] == "0007" and "1,188" in told["samples"]
    for name in ("anna", "boris", "node-1", "home"):
        assert name not in str(course) + str(told)


def test_of_an_older_versions_training_nothing_is_said(store: DirectoryStore) -> None:
    assert continuity(store, RUN, {"plan": {}, "curve": [], "skipped": []}) is None
