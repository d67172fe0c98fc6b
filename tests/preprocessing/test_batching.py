"""Batches: beside one another, in order, and one bad photo costs itself wherever it fails."""

import gc
import threading
import weakref
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
        with pytest.raises(RuntimeError, match=" 0$"):  # the first of them
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


def test_each_step_keeps_to_its_thread() -> None:
    """Also when a batch has to be done again, one by one."""
    threads: dict[str, set[int]] = {step: set() for step in STEPS}

    def here(step: str) -> None:
        threads[step].add(threading.get_ident())

    def prepare(number: int) -> int:
        here("prepare")
        return number

    def collate(batch: list[int]) -> list[int]:
        here("collate")
        return batch

    def run(inputs: list[int]) -> list[int]:
        here("run")
        return inputs

    def read(batch: list[int], made: Any) -> Any:
        here("read")
        if len(batch) > 1:
            raise RuntimeError("not together")
        return made

    assert one_bad_apple(Steps(run, collate, read), range(7), 3, prepare) == list(range(7))
    assert threads["run"] == {threading.get_ident()} and all(len(found) == 1 for found in threads.values())
    assert threads["prepare"] == threads["collate"] != threads["read"] != threads["run"]


def test_what_failed_holds_nothing() -> None:
    """Not while the next batch is at work, nor while it is tried again."""

    class Tensor:
        pass

    held: list[weakref.ref[Tensor]] = []

    def run(numbers: list[int]) -> list[int]:
        gc.collect()
        assert not any(one() for one in held)
        if 0 in numbers:
            large = Tensor()
            held.append(weakref.ref(large))
            raise MemoryError
        return numbers

    first, *others = one_bad_apple(Steps(run), range(6), 2, lambda number: number)
    assert isinstance(first, MemoryError) and others == [1, 2, 3, 4, 5] and len(held) == 2


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
    runs = 0

    def run(numbers: list[int]) -> list[int]:
        nonlocal runs
        runs += 1
        return numbers

    def refuse(*_: Any) -> Any:
        raise UserError("install it")

    steps: dict[str, Any] = {"run": run, "collate": list, "read": lambda _, made: made, "prepare": lambda one: one}
    steps[where] = refuse
    prepare = steps.pop("prepare")
    with pytest.raises(UserError, match="install it"):
        one_bad_apple(Steps(**steps), range(20), 2, prepare)
    assert runs <= 2  # where `read` refuses, the next batch is under way


def test_batches_keep_the_order() -> None:
    sizes = []

    def run(numbers: list[int]) -> list[int]:
        sizes.append(len(numbers))
        return numbers

    assert in_batches(Steps(run), range(5), 2) == [0, 1, 2, 3, 4] and sizes == [2, 2, 1]
