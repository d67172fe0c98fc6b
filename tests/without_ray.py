"""What Ray distributes, in this process, for tests of what is distributed."""

import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from flows import train
from flows.run import Run


def map_shards(
    worker_class: Callable[..., Any],
    items: Iterable[dict[str, Any]],
    concurrency: int,
    arguments: Sequence[Any],
    total: int | None = None,
    gpus: float = 0.0,
) -> Generator[dict[str, Any], None, None]:
    """`infra.ray_session.map_shards` with one worker: all is pickled as on its way to other machines, and the last item
    is done first, for no order is promised."""
    worker = worker_class(*pickle.loads(pickle.dumps(tuple(arguments))))
    done = [pickle.dumps(worker(pickle.loads(pickle.dumps(item)))) for item in reversed(list(items))]
    yield from map(pickle.loads, done)


class Told:
    """In the place of the reporter's actor: keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.say, self.tell = SimpleNamespace(remote=self.said.append), SimpleNamespace(remote=lambda row: None)
        self.started = SimpleNamespace(remote=lambda *_: None)


def fit(run: Run, plan: dict[str, Any]) -> None:
    """`flows.train.fit` with the workers that torchrun started, or one in this process: Ray Train's local mode (of
    RAY_TRAIN_V2_ENABLED)."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from flows.training_loop import train_worker

    settings, shards = run.settings.train, run.training_shards(plan["catalog_version"])
    people = tuple(train.read_people(run)[: settings.pictures_people]) if settings.pictures_every else ()
    start, damaged = train.adapter_of(run, plan["start"]), frozenset(plan["damaged"])
    job = train.TrainingJob(run.settings, run.store, plan["run_id"], shards, start, damaged, people=people)
    TorchTrainer(
        train_worker,
        train_loop_config={"job": pickle.loads(pickle.dumps(job)), "reporter": Told()},
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="0001"),
    ).fit()
