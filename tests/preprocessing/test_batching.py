"""Batches: beside one another, in order, and one bad photo costs itself wherever it fails."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import UserError
from preprocessing.batching import Steps, in_batches, one_bad_apple

STEPS = ("prepare", "collate", "run", "read")


def _steps(fails: Callable[[str, int], bool]) -> tuple[Callable[[int], int], Steps[int, str]]:
    """A "model" that says each number, and fails in a step wherever `fails` says so."""

    def checked(step: str, numbers: list[int]) -> list[int]:
        for number in numbers:
            if fails(step, number):
                raise RuntimeError(f"{step} {number}")
        return numbers

    return (
        lambda number: checked("prepare", [number])[0],
        Steps(
            run=lambda numbers: [10 * number for number in checked("run", numbers)],
            collate=lambda numbers: checked("collate", numbers),
            read=lambda numbers, made: [
                f"{number}: {ten}" for number, ten in zip(checked("read", numbers), made, strict=True)
            ],
        ),
    )


@given(
    st.integers(0, 12),
    st.integers(1, 5),
    st.sets(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), max_size=6),
)
def test_whoever_fails_costs_himself(count: int, batch_size: int, bad: set[tuple[str, int]]) -> None:
    prepare, steps = _steps(lambda step, number: (step, number) in bad)
    failing = {number for _, number in bad if number < count}
    if count > 1 and len(failing) == count:
        with pytest.raises(RuntimeError):
            one_bad_apple(steps, range(count), batch_size, prepare)
        return
    results = one_bad_apple(steps, range(count), batch_size, prepare)
    assert len(results) == count
    for number, result in enumerate(results):
        if number in failing:
            assert isinstance(result, RuntimeError) and str(result).endswith(f" {number}")
        else:
            assert result == f"{number}: {10 * number}"


def test_the_model_waits_for_nobody() -> None:
    """While it is at the second batch, the third is prepared and the first read: each waits for the other two."""
    together = threading.Barrier(3, timeout=20)

    def at(step: str, moment: str) -> None:
        if step == moment:
            together.wait()

    def run(inputs: list[int]) -> list[int]:
        at("run 1", f"run {inputs[0]}")
        return inputs

    def read(_: list[int], made: Any) -> Any:
        at("read 0", f"read {made[0]}")
        return made

    def collate(batch: list[int]) -> list[int]:
        at("collate 2", f"collate {batch[0]}")
        return batch

    assert one_bad_apple(Steps(run, collate, read), range(4), 1, lambda number: number) == [0, 1, 2, 3]


def test_the_model_is_in_one_thread_at_a_time() -> None:
    """Also when what was read has to be made again."""
    busy, threads = threading.Lock(), set()

    def run(inputs: list[int]) -> list[int]:
        assert busy.acquire(blocking=False)
        threads.add(threading.get_ident())
        busy.release()
        return inputs

    def read(batch: list[int], made: Any) -> Any:
        if len(batch) > 1:
            raise RuntimeError("not together")
        return made

    assert one_bad_apple(Steps(run, read=read), range(7), 3, lambda number: number) == list(range(7))
    assert threads == {threading.get_ident()}


def test_a_wrong_number_of_results_is_an_error() -> None:
    short: Steps[int, int] = Steps(lambda numbers: numbers[1:])
    with pytest.raises(ValueError, match="0 results for 1 photos"):
        in_batches(short, [1, 2], 1)
    with pytest.raises(ValueError, match="0 results for 1 photos"):
        one_bad_apple(short, [1, 2, 3], 2, lambda number: number)
    (alone,) = one_bad_apple(short, [1], 2, lambda number: number)
    assert isinstance(alone, ValueError)


@pytest.mark.parametrize("where", STEPS)
def test_what_the_user_must_mend_is_raised_at_once(where: str) -> None:
    def refuse(*_: Any) -> Any:
        raise UserError("install it")

    steps: dict[str, Any] = {"run": list, "collate": list, "read": lambda _, made: made, "prepare": lambda one: one}
    steps[where] = refuse
    prepare = steps.pop("prepare")
    with pytest.raises(UserError, match="install it"):
        one_bad_apple(Steps(**steps), [1, 2, 3], 2, prepare)


def test_batches_keep_the_order() -> None:
    sizes = []

    def run(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        return numbers

    assert in_batches(Steps(run), range(5), 2) == [0, 1, 2, 3, 4] and sizes == [2, 2, 1]
