"""The queue between driver and actors; how batches travel over it is tested in test_ray_session.py."""

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.shard_feed import BatchQueue, BatchQueues


@given(count=st.integers(0, 12), seed=st.integers(0, 10**6))
def test_the_order_in_which_calls_arrive_does_not_matter(count: int, seed: int) -> None:
    """Not even that of the end, which Ray may well begin before the last batch: nothing is passed over."""

    async def numbers(queue: BatchQueue) -> list[int]:
        found = []
        while await queue.exists(len(found)):
            found.append(len(found))
            assert await queue.get(found[-1]) == [f"batch {found[-1]}"]
        return found

    async def scenario() -> list[int]:
        queue = BatchQueue()
        reader = asyncio.create_task(numbers(queue))
        calls = [queue.put(number, [f"batch {number}"]) for number in range(count)] + [queue.end(count)]
        random.Random(seed).shuffle(calls)
        for call in calls:
            await call
            await asyncio.sleep(0)
        return await asyncio.wait_for(reader, 10)

    assert asyncio.run(scenario()) == list(range(count))


def test_a_batch_that_was_let_go_is_still_known() -> None:
    """Ray repeats the read task after a crash: it must give the same numbers as before."""

    async def scenario() -> None:
        queue = BatchQueue()
        await queue.put(0, ["batch"])
        await queue.release(0)
        assert await queue.exists(0)
        with pytest.raises(KeyError):
            await queue.get(0)
        await queue.end(1)
        assert not await queue.exists(1)

    asyncio.run(scenario())


def test_what_was_given_up_is_told_so_and_disturbs_nobody() -> None:
    """The read task of an abandoned call waits for its next batch; the actor goes on for other calls."""

    async def scenario() -> None:
        queues = BatchQueues()
        await queues.call("one", "put", 0, ["batch"])
        await queues.call("other", "put", 0, ["theirs"])
        waiting = asyncio.create_task(queues.call("one", "exists", 1))
        await asyncio.sleep(0)
        await queues.call("one", "close")
        assert not await asyncio.wait_for(waiting, 10)
        await queues.call("one", "put", 1, ["late"])
        await queues.call("one", "end", 5)
        for number in range(3):
            assert not await asyncio.wait_for(queues.call("one", "exists", number), 10)
        with pytest.raises(KeyError):
            await queues.call("one", "get", 0)
        assert await queues.call("other", "get", 0) == ["theirs"]

    asyncio.run(scenario())
