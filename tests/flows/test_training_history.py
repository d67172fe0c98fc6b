"""What is left of attempts that ended well, badly, or without a word."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from flows import training_history
from flows.training_history import FINISHED, Attempt, AttemptLog, WorkersStart, read_attempts, steps_done_again
from infra.errors import UserError
from infra.storage import DirectoryStore, Key, Pieces

RUN = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def _log(store: DirectoryStore, continued: int = 0, **more: Any) -> AttemptLog:
    return AttemptLog(store, RUN, continued, Path("/some/where"), **{"seconds": 0.0, **more})


def test_an_attempt_that_ends_well(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "anna")
    assert read_attempts(store, RUN) == []
    with _log(store) as log:
        log.started(0, 2, ["b", "a", "b"])
        log.reached(10)
        log.reached(20)
    (attempt,) = read_attempts(store, RUN)
    assert (attempt.number, attempt.user, attempt.workspace, attempt.continued) == (1, "anna", "/some/where", 0)
    assert attempt.host and attempt.time.endswith("+00:00") and attempt.ended >= attempt.time
    assert [(one.step, one.heard, one.workers, one.hosts) for one in attempt.starts] == [(0, 0, 2, ["a", "b"])]
    assert (attempt.reached, attempt.how) == (20, FINISHED)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (UserError("Mend this."), "Mend this."),
        (KeyboardInterrupt(), "stopped by its user"),
        (RuntimeError("two\nlines"), "RuntimeError: two lines"),
    ],
)
def test_why_it_ended_is_written_down_and_the_error_goes_on(
    error: BaseException, how: str, store: DirectoryStore
) -> None:
    with pytest.raises(type(error)), _log(store) as log:
        log.reached(7)
        raise error
    (attempt,) = read_attempts(store, RUN)
    assert (attempt.how, attempt.reached) == (how, 7)


def test_of_a_killed_one_all_is_left_but_its_end(store: DirectoryStore) -> None:
    log = _log(store, continued=40).__enter__()
    log.started(40, 2, ["a"])
    log.reached(50)
    log.started(40, 1, ["a"])  # a worker was lost
    log.reached(60)
    (attempt,) = read_attempts(store, RUN)
    assert [(one.step, one.heard) for one in attempt.starts] == [(40, 0), (40, 50)]
    assert (attempt.continued, attempt.reached, attempt.ended, attempt.how) == (40, 60, "", "")


def test_each_attempt_has_a_number_of_its_own(store: DirectoryStore) -> None:
    """Also when two begin at the same time, and the first one goes on writing."""
    first = _log(store).__enter__()
    second = _log(store, continued=5).__enter__()
    first.reached(3)
    second.reached(8)
    assert [(one.number, one.continued, one.reached) for one in read_attempts(store, RUN)] == [(1, 0, 3), (2, 5, 8)]
    store.put(f"runs/{RUN}/history/notes.txt", b"of somebody")
    assert len(read_attempts(store, RUN)) == 2


def test_two_at_a_time_are_one_too_many(store: DirectoryStore) -> None:
    """Whoever comes while another one lives is told who that is; once it has ended the next one begins."""
    with _log(store, seconds=3.0) as first:
        first.reached(30)
        for _ in range(2):  # the refused one does not hide the living one
            with pytest.raises(UserError, match=r"is at this training since .* \(attempt 1, step 30\)"):
                _log(store, seconds=3.0).__enter__()
    with _log(store, seconds=3.0):
        pass
    first_, *refused, last = read_attempts(store, RUN)
    assert first_.how == last.how == FINISHED and (first_.reached, last.number) == (30, 4)
    assert all("is at this training" in one.how and not one.starts for one in refused)


def test_of_two_that_begin_after_a_killed_one_the_first_goes_on(store: DirectoryStore) -> None:
    """While both still listen for it."""
    _log(store).__enter__().reached(10)
    with ThreadPoolExecutor(2) as both:
        first = both.submit(_log(store, seconds=3.0).__enter__)
        ends = time.monotonic() + 60
        while len(read_attempts(store, RUN)) < 2:
            assert time.monotonic() < ends
        second = both.submit(_log(store, seconds=3.0).__enter__)
        with pytest.raises(UserError, match=r"\(attempt 2, step 0\)"):
            second.result()
        first.result().__exit__(None, None, None)


def test_after_a_killed_one_the_next_begins(store: DirectoryStore, capsys: pytest.CaptureFixture[str]) -> None:
    _log(store).__enter__().reached(10)
    with _log(store, seconds=0.1) as log:
        assert log.number == 2 and "did not say that it ended: listening" in capsys.readouterr().err
    key = f"runs/{RUN}/history/0001-reached.json"
    store.put(key, json.dumps({"reached": 10, "heard_at": "2020-01-01T00:00:00+00:00"}).encode())
    with _log(store, seconds=3600.0) as log:  # of one that was killed long ago nobody waits to hear
        assert log.number == 3


def test_it_gives_signs_of_life_between_two_steps(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = (f"{year}-01-01T00:00:00+00:00" for year in count(2000))
    monkeypatch.setattr(training_history, "_now", lambda: next(now))
    with _log(store, seconds=0.05) as log:
        log.reached(10)
        heard = read_attempts(store, RUN)[0].heard_at
        ends = time.monotonic() + 60
        while read_attempts(store, RUN)[0].heard_at == heard:
            assert time.monotonic() < ends
            time.sleep(0.01)
        assert read_attempts(store, RUN)[0].reached == 10


class _StoreThatIsAway(DirectoryStore):
    away = False

    def put(self, key: Key, data: Pieces) -> None:
        if self.away:
            raise OSError("the store is away")
        super().put(key, data)


def test_what_cannot_be_written_comes_with_the_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _StoreThatIsAway(tmp_path)
    with _log(store) as log:
        store.away = True
        log.started(0, 1, ["a"])
        log.reached(10)
        assert capsys.readouterr().err.count("the store is away") == 1
        store.away = False
        log.reached(20)
        assert [one.step for one in read_attempts(store, RUN)[0].starts] == [0]
        store.away = True
    assert read_attempts(store, RUN)[0].reached == 20


def test_the_store_is_not_asked_at_every_step(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written, put = list[str](), store.put
    monkeypatch.setattr(store, "put", lambda key, data: (written.append(str(key)), put(key, data)))
    with _log(store, seconds=3600.0) as log:
        for step in range(100):
            log.reached(step)
    assert read_attempts(store, RUN)[0].reached == 99
    assert 1 <= sum("reached" in key for key in written) <= 3, "as it begins and as it ends"


def _attempt(number: int, starts: list[tuple[int, int]], reached: int) -> Attempt:
    made = tuple(WorkersStart("", step, heard, 1, ["a"]) for step, heard in starts)
    return Attempt(number, "", "", "", "", starts[0][0] if starts else 0, made, reached)


@pytest.mark.parametrize(
    ("attempts", "again"),
    [
        ([], []),
        ([_attempt(1, [(0, 0)], 200)], []),
        ([_attempt(1, [(0, 0)], 137), _attempt(2, [(100, 0)], 200)], [(101, 137)]),
        ([_attempt(1, [(0, 0)], 90), _attempt(2, [(100, 0)], 200)], []),  # the checkpoint was the last sign
        ([_attempt(1, [(0, 0), (50, 70), (50, 60)], 200)], [(51, 70), (51, 60)]),
        ([_attempt(1, [(0, 0)], 30), _attempt(2, [], 0), _attempt(3, [(20, 0)], 40)], [(21, 30)]),
    ],
)
def test_steps_that_were_done_again(attempts: list[Attempt], again: list[tuple[int, int]]) -> None:
    assert steps_done_again(attempts) == again
