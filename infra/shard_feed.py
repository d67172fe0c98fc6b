"""The items of `map_shards` on their way to the actors: made one batch at a time, let go once their results are in.

Ray Data wants to know its input beforehand and puts all of it into its object store. Here its input is a stream of
numbers, one per batch, and an actor fetches the batch that a number stands for. So items can come from a generator,
only a window of them exists at a time, a slow consumer holds the workers back, and a batch can be as large as the speed
measured so far allows.
"""

import asyncio
import pickle
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

# Ray Data costs 25 ms of CPU time per batch (10 of them in the driver): at four seconds of work per batch about .6 %.
# That much work is also what a lost worker costs at most, unless a single shard takes longer.
BATCH_SECONDS = 4.0
_MOST_ITEMS = 512


class BatchQueue:
    """What lies between driver and workers: references to the batches in the window, by number.

    An asynchronous actor may begin calls in another order than that in which they were made; nothing here minds.
    """

    def __init__(self) -> None:
        self._batches: dict[int, list[Any]] = {}
        self._seen: set[int] = set()
        self._total: int | None = None
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, number: int, batch: list[Any]) -> None:
        """batch: [reference], so that what it refers to stays where it is."""
        async with self._changed:
            if not self._closed:
                self._batches[number] = batch
                self._seen.add(number)
                self._changed.notify_all()

    async def end(self, total: int) -> None:
        """There are so many batches in all."""
        async with self._changed:
            self._total = total
            self._changed.notify_all()

    async def exists(self, number: int) -> bool:
        """Wait until the batch is there, or it is known that there is none. A repeat gives the same answer."""

        def known() -> bool:
            return self._closed or number in self._seen or (self._total is not None and number >= self._total)

        async with self._changed:
            await self._changed.wait_for(known)
            return number in self._seen

    async def get(self, number: int) -> list[Any]:
        """A batch whose result has not been let go."""
        return self._batches[number]

    async def release(self, number: int) -> None:
        """The batch's result is in."""
        self._batches.pop(number, None)

    async def close(self) -> None:
        """Nobody waits for more, and nothing is held any longer, also of what comes late."""
        async with self._changed:
            self._closed = True
            self._batches.clear()
            self._seen.clear()
            self._changed.notify_all()


class BatchQueues:
    """The actor: a queue for each call of `map_shards`. One process serves all of a driver's calls; starting one takes
    two seconds of a core."""

    def __init__(self) -> None:
        # A closed queue stays (it is empty): a read task that was given up may still ask it.
        self._queues: defaultdict[str, BatchQueue] = defaultdict(BatchQueue)

    async def call(self, name: str, method: str, *arguments: Any) -> Any:
        """One of the methods of the queue called `name`."""
        return await getattr(self._queues[name], method)(*arguments)


def sealed(batch: list[dict[str, Any]]) -> bytes:
    """Items or results on their way. As one pickle: Ray would pack lists and pickle each object in them on its own,
    which costs tiny shards a twentieth of their work."""
    return pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)


def opened(batch: bytes) -> list[dict[str, Any]]:
    """What was `sealed`, by a process of the same run: it came through Ray, which unpickles all that it brings."""
    items: list[dict[str, Any]] = pickle.loads(batch)
    return items


@dataclass(frozen=True)
class Queue:
    """One queue of the actor, from any process; its methods return what Ray's do: a reference to the answer."""

    actor: Any
    name: str

    def call(self, method: str, *arguments: Any) -> Any:
        """Begin one of BatchQueue's methods."""
        return self.actor.call.remote(self.name, method, *arguments)


class Batches:
    """The driver's end: cuts the items into batches and keeps `window` of them under way."""

    def __init__(self, queue: Queue, items: Iterable[dict[str, Any]], total: int | None, concurrency: int) -> None:
        self._queue, self._items, self._concurrency = queue, iter(items), concurrency
        self._remaining = total
        # Each actor may have one batch in its hands and one waiting: what a lost node holds never fills the window.
        self._window = 3 * concurrency + 2
        self._references: dict[int, Any] = {}
        self._seconds_per_item: float | None = None
        self._next, self._size, self._ended = 0, 1, False

    def fill(self) -> None:
        """Hand over batches until the window is full or the items are at their end."""
        import ray

        while not self._ended and len(self._references) < self._window:
            batch = list(islice(self._items, self._size))
            if not batch:
                self._ended = True
                self._queue.call("end", self._next)
                return
            if self._remaining is not None:
                self._remaining = max(self._remaining - len(batch), 0)
            reference = ray.put(sealed(batch))
            self._references[self._next] = reference
            self._queue.call("put", self._next, [reference])
            self._next += 1

    def finished(self, number: int, items: int, seconds: float) -> None:
        """Let a batch go and learn from it how large the following ones may be."""
        del self._references[number]
        self._queue.call("release", number)
        each = seconds / max(items, 1)
        known = self._seconds_per_item
        self._seconds_per_item = each if known is None else 0.5 * (known + each)
        size = min(int(BATCH_SECONDS / max(self._seconds_per_item, 1e-6)), _MOST_ITEMS, 4 * self._size)
        if (
            self._remaining is not None and self._concurrency > 1
        ):  # towards the end smaller ones: no actor idles for long
            size = min(size, -(-self._remaining // (2 * self._concurrency)))
        self._size = max(size, 1)


def numbers(queue: Queue) -> Iterator[Any]:
    """The number of each batch as a table of one row, as soon as there is that batch. Runs as Ray Data's one read task:
    repeated after a crash it gives the same numbers."""
    import pyarrow
    import ray

    number = 0
    while ray.get(queue.call("exists", number)):
        yield pyarrow.table({"number": [number]})
        number += 1
