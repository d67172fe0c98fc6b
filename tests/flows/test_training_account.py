"""Every sample is counted, and the count must be that of what was read."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.training_account import account, sound_place, tally
from moa_model import SampleOrder

START = {"step": 0, "damaged": []}


def _read(order: SampleOrder, positions: range, sound: list[bool]) -> int:
    return sum(tally(position, sound_place(order, sound, position)) for position in positions)


@given(
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    window=st.integers(1, 4),
    batch_size=st.integers(1, 7),
    steps=st.integers(0, 12),
    seed=st.integers(0, 3),
)
def test_an_undisturbed_order_gives_everybody_one_turn_an_epoch(
    sizes: list[int], window: int, batch_size: int, steps: int, seed: int
) -> None:
    order, names = SampleOrder(seed, sizes, window), [str(number) for number in range(len(sizes))]
    read = _read(order, range(steps * batch_size), [True] * len(sizes))
    found = account(order, names, [START], (), steps, batch_size, read)
    whole, begun = divmod(steps * batch_size, sum(sizes))
    assert found == {
        "samples": sum(sizes),
        "whole_epochs": whole,
        "begun": begun,
        "again": 0,
        "missing": 0,
        "proven": True,
    }
    if steps:
        assert not account(order, names, [START], (), steps, batch_size, read + 1)["proven"]


def test_a_step_that_was_done_twice_or_not_at_all_is_no_proof() -> None:
    order, sound = SampleOrder(0, [5, 4], 2), [True, True]
    steps = [_read(order, range(3 * step, 3 * step + 3), sound) for step in range(6)]

    def proven(*done: int) -> bool:
        return account(order, ["a", "b"], [START], (), 6, 3, sum(steps[step] for step in done))["proven"]

    assert proven(0, 1, 2, 3, 4, 5)
    assert not proven(0, 1, 2, 3, 4)
    assert not proven(0, 1, 2, 3, 4, 4)
    assert not proven(0, 1, 2, 3, 4, 5, 5)


def test_skipped_steps_and_shards_passed_over_are_counted_as_what_they_are() -> None:
    """From step 2 on, shard b is damaged; step 4 is skipped: held against a count by hand."""
    order, names, batch_size, steps = SampleOrder(3, [4, 3, 5], 1), ["a", "b", "c"], 4, 9
    starts = [START, {"step": 2, "damaged": ["b"]}]
    read, seen = 0, Counter[tuple[int, Any]]()
    for step in range(steps):
        sound = [True, step < 2, True]
        for position in range(step * batch_size, (step + 1) * batch_size):
            if step + 1 != 4:
                place = sound_place(order, sound, position)
                seen[position // 12, place] += 1
                read += tally(position, place)
    found = account(order, names, starts, {4}, steps, batch_size, read)
    assert (found["whole_epochs"], found["begun"], found["proven"]) == (3, 0, True)
    assert found["again"] == sum(count - 1 for count in seen.values())
    assert found["missing"] == 3 * 12 - len(seen) >= 4
    assert not account(order, names, starts, (), steps, batch_size, read)["proven"]
    assert not account(order, names, [START], {4}, steps, batch_size, read)["proven"]


def test_whoever_stands_beside_a_damaged_shard_takes_its_turns() -> None:
    order = SampleOrder(0, [2, 2, 2], 3)
    places = [sound_place(order, [True, False, True], position) for position in range(12)]
    assert {shard for shard, _ in places} == {0, 2}
    assert all(place == order.at(position) for position, place in enumerate(places) if order.at(position)[0] != 1)


@pytest.mark.parametrize("other", [(1, (2, 4)), (0, (2, 3)), (1, (3, 3)), (12, (3, 3))])
def test_tallies_tell_positions_and_places_apart(other: tuple[int, tuple[int, int]]) -> None:
    assert tally(1, (2, 3)) != tally(*other) and 0 <= tally(*other) < 2**32
