"""What a training leaves in the store when it is finished; the driver is tested by the journey and by its faults."""

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, TrainingFailedError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from flows import train
from flows.checkpoints import folder_of, latest_step
from flows.run import Run
from flows.train import WorkersFailed, _is_result, _last_words, _let_go
from tests.tiny_world import tiny_settings, write_models


def test_a_checkpoints_history_and_released_files_outlive_it() -> None:
    names = ["history.json", "released/adapter.safetensors", "optimizer.safetensors", "released.json", "x/released/y"]
    assert [name for name in names if _is_result(name)] == ["history.json", "released/adapter.safetensors"]


def test_checkpoints_are_let_go_and_nothing_else(tmp_path: Path) -> None:
    write_models(tmp_path / "models")
    run = Run(tiny_settings(tmp_path, tmp_path / "w"))
    kept = ["runs/abc/finished.json", "runs/abc/adapter.safetensors", f"{folder_of('abcd')}1/x", "runs/abc/history/1"]
    for key in (*kept, f"{folder_of('abc')}1/x", f"{folder_of('abc')}2/y", "runs/abc/attempts/0001/.marker"):
        run.store.put(key, b"x")
    _let_go(run, "abc")
    assert sorted(run.store.list("runs/")) == sorted(kept)
    _let_go(run, "abc")  # as after a kill in the middle
    assert sorted(run.store.list("runs/")) == sorted(kept)


@pytest.mark.parametrize("progress", [[10, 20, 20], [10, 10], [0]])
def test_workers_may_fail_as_often_as_they_like_while_checkpoints_come_between(
    progress: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_models(tmp_path / "models")
    run, begun = Run(tiny_settings(tmp_path, tmp_path / "w")), list[int]()

    def attempt(run: Run, plan: dict[str, Any], continued: int) -> None:
        begun.append(continued)
        if step := progress[len(begun) - 1]:
            run.store.put(f"{folder_of('abc')}step-{step:08d}/complete.json", b"{}")
        raise WorkersFailed("Too often.")

    monkeypatch.setattr(train, "_attempt", attempt)
    with pytest.raises(WorkersFailed):
        train.fit(run, {"run_id": "abc"})
    assert begun == [0, *progress[:-1]] and latest_step(run.store, "abc") == progress[-1]


_DIED = "The actor died unexpectedly before finishing this task"
_TRACE = 'Traceback (most recent call last):\n  File "x.py", line 1\nValueError: bad shape.\n'


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (WorkerGroupError("all", {0: ValueError(_TRACE), 1: ValueError(_TRACE)}), "ValueError: bad shape"),
        (WorkerGroupError("all", {3: RuntimeError("The actor died.\n\tpid: 7")}), "The actor died"),
        (WorkerGroupError("all", {0: WorkerHealthCheckFailedError("health", ActorDiedError())}), _DIED),
        (ControllerError(RuntimeError("no room in the cluster")), "no room in the cluster"),
        (TrainingFailedError("odd"), "odd"),
    ],
)
def test_what_failed_at_last_is_said_without_its_trace(error: Exception, said: str) -> None:
    assert _last_words(error) == said
