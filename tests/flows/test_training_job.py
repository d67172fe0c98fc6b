"""What workers and driver tell each other, and what of it stops a training."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import training_job, training_loop
from flows.training_job import News, ProgressReporter, TrainingJob
from infra.errors import DamagedObject, UserError
from infra.settings import load_settings
from infra.storage import DirectoryStore
from preprocessing.catalog import ShardRow

ROWS = [ShardRow("shard", name, "f", f"shards/{name}.tar", "0" * 64, 1) for name in "ab"]


class _Actor:
    """A `ProgressReporter` as its handle is used, in this process."""

    def __init__(self) -> None:
        self.reporter = ProgressReporter()

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.reporter, name))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`work` with a loop that does what it is told, under a setting of train.damaged_shards."""
    import ray

    monkeypatch.setattr(ray, "get", lambda answer: answer)

    def begin(actor: _Actor, damaged_shards: str, loop: Callable[[TrainingJob], object]) -> None:
        settings = load_settings("demo", tmp_path, {"train.damaged_shards": damaged_shards})
        job = TrainingJob(settings, DirectoryStore(tmp_path), "run", ROWS, None, frozenset({"z"}))
        monkeypatch.setattr(training_loop, "train_worker", lambda config: loop(config["job"]))
        training_job.work({"job": job, "reporter": actor})

    return begin


def _damaged(_: TrainingJob) -> None:
    raise DamagedObject("shards/b.tar is damaged", "shards/b.tar")


def test_a_shard_that_is_damaged_meanwhile_stops_the_training(work: Callable[..., Any]) -> None:
    actor = _Actor()
    with pytest.raises(UserError):
        work(actor, "stop", _damaged)
    assert actor.reporter.ask() == News(None, "shards/b.tar is damaged", [], [])


def test_or_those_who_are_started_next_do_without_it(work: Callable[..., Any]) -> None:
    actor, begun = _Actor(), list[frozenset[str]]()
    with pytest.raises(UserError):  # for Ray, which starts the workers again
        work(actor, "skip", _damaged)
    row, refusal, said, _ = actor.reporter.ask()
    assert (row, refusal) == (None, "") and said == ["without shard b from here on (shards/b.tar is damaged)"]
    work(actor, "skip", lambda job: begun.append(job.damaged))
    assert begun == [frozenset("bz")]


def test_a_full_disk_is_the_users_to_mend(work: Callable[..., Any]) -> None:
    def full(_: TrainingJob) -> None:
        raise OSError(28, "No space left on device", "/scratch/x")

    actor = _Actor()
    with pytest.raises(UserError):
        work(actor, "stop", full)
    assert "no room left on the disk of /scratch/x" in actor.reporter.ask()[1]


def test_who_controls_the_training_is_known_to_whoever_asks() -> None:
    reporter = ProgressReporter()
    assert reporter.controlling() == []
    reporter.controlled(["handle"])
    assert reporter.controlling() == ["handle"]
