"""A worker that is to save is told once, and says when it has; Ray's controller: tests/faults/test_growth.py."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import ray

from flows import training_resize
from flows.background import in_background
from infra.ray_session import ray_session
from tests.tiny_world import tiny_ray


@pytest.fixture(autouse=True)
def _not_asked() -> Iterator[None]:
    """The events are a process's: other tests' trainings have set them here."""
    _clear()
    yield
    _clear()


def _clear() -> None:
    training_resize._asked.clear()
    training_resize._saved.clear()


def test_it_is_told_once_and_answers() -> None:
    assert not training_resize.asked() and not training_resize.has_saved()
    training_resize.ask()
    assert training_resize.asked() and not training_resize.asked()
    assert not training_resize.has_saved()
    training_resize.saved(None)
    assert training_resize.has_saved()


class _Worker:
    """A process of Ray's that executes what Ray Train's worker would."""

    def __init__(self) -> None:
        self.actor = ray.remote(num_cpus=0)(_Process).remote()

    def execute_async(self, function: Callable[[], Any]) -> Any:
        return self.actor.execute.remote(function)

    def execute(self, function: Callable[[], Any]) -> Any:
        return ray.get(self.execute_async(function))


class _Process:
    def execute(self, function: Callable[[], Any]) -> Any:
        return function()


def test_it_is_waited_for_until_it_has_saved_or_one_has_ended() -> None:
    with ray_session(tiny_ray("", 1)):
        for ends in (0, 1):
            workers = [_Worker(), _Worker()]
            waiting = in_background(partial(training_resize._have_save, workers, 120.0))
            while not workers[0].execute(training_resize.asked):
                assert not waiting.done()
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1.0)
            workers[ends].execute(training_resize.saved)
            waiting.result(timeout=60.0)
        training_resize._have_save([_Worker()], 1.0)  # the time is over


def test_a_question_takes_no_later_one_with_it() -> None:
    """Asked between looking and clearing, as by Ray's own thread."""

    class Late(type(training_resize._asked)):
        def is_set(self) -> bool:
            was = super().is_set()
            self.set()
            return was

    late = Late()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_resize, "_asked", late)
        assert not training_resize.asked() and training_resize.asked()
