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


def fit(run: Run, plan: dict[str, Any]) -> None:
    """`flows.train.fit` with one worker in this process: Ray Train's local mode (of RAY_TRAIN_V2_ENABLED)."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    shards = run.training_shards(plan["catalog_version"])
    job = train.TrainingJob(run.settings, run.store, plan["run_id"], shards, train.adapter_of(run, plan["start"]))
    nobody = SimpleNamespace(remote=lambda *_: None)
    TorchTrainer(
        train.work,
        train_loop_config={
            "job": pickle.loads(pickle.dumps(job)),
            "reporter": SimpleNamespace(tell=nobody, say=nobody),
        },
        scaling_config=ScalingConfig(num_workers=0),
        run_config=RunConfig(name="0001"),
    ).fit()
