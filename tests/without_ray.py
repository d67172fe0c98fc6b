"""What Ray distributes, in this process, for tests of what is distributed."""

import pickle
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any


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
