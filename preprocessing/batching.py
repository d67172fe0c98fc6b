"""A shard's photos through a model in batches, so that the model waits for nobody.

While it is at one batch, the next one is prepared on one thread (decoded, normalised) and the last one read on another
(masks enlarged, tokens spelled out). A photo on which it fails costs itself.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from traceback import clear_frames
from typing import Any, Generic, Protocol, TypeVar

from infra.errors import UserError

_Input = TypeVar("_Input")
_Ready = TypeVar("_Ready")
_Output = TypeVar("_Output")


def _as_made(_: Sequence[Any], made: Any) -> Any:
    return made


@dataclass(frozen=True)
class Steps(Generic[_Ready, _Output]):
    """A model's way with a batch. `run` is never in two threads at once; the others may be beside it, each in one.

    collate: photos → what the model takes. run: that → what it gives. read: photos and that → one result per photo.
    """

    run: Callable[[Any], Any]
    collate: Callable[[list[_Ready]], Any] = list
    read: Callable[[list[_Ready], Any], Sequence[_Output]] = _as_made

    def __call__(self, batch: list[_Ready]) -> list[_Output]:
        """All three, one after another; ValueError unless there is one result per photo."""
        return _as_many(self.read(batch, self.run(self.collate(batch))), batch)


class BatchModel(Protocol[_Ready, _Output]):
    """What a stage needs of a model."""

    @property
    def steps(self) -> Steps[_Ready, _Output]:
        """Its way with one batch."""
        ...


class LoadedWhenAsked(Generic[_Ready, _Output]):
    """A model that is loaded when its steps are first asked for: photos that came with its answers need none."""

    def __init__(self, load: Callable[[], BatchModel[_Ready, _Output]]) -> None:
        self._load = load

    @cached_property
    def steps(self) -> Steps[_Ready, _Output]:
        """The loaded model's."""
        return self._load().steps


def in_batches(steps: Steps[_Ready, _Output], items: Sequence[_Ready], batch_size: int) -> list[_Output]:
    """One result per item, batch after batch; the first error is raised."""
    starts = range(0, len(items), batch_size)
    return [result for start in starts for result in steps(list(items[start : start + batch_size]))]


def one_bad_apple(
    steps: Steps[_Ready, _Output],
    items: Sequence[_Input],
    batch_size: int,
    prepare: Callable[[_Input], _Ready],
) -> list[_Output | Exception]:
    """The steps on the prepared items in batches; where a batch fails, its items one by one.

    An item that cannot be prepared costs itself. The first error is raised if everything failed, a UserError always.
    """

    def prepared(start: int) -> tuple[list[_Ready | Exception], Any]:
        ready = [_tried(prepare, item) for item in items[start : start + batch_size]]
        good = [item for item in ready if not isinstance(item, Exception)]
        return ready, _tried(steps.collate, good) if good else None

    results: list[_Output | Exception] = []
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:

        def alone(item: _Ready) -> _Output:
            """One item's steps, each in its own thread."""
            inputs = ahead.submit(steps.collate, [item]).result()
            return behind.submit(_read, steps, [item], steps.run(inputs)).result()[0]

        def settle(ready: list[_Ready | Exception], reading: "Future[list[_Output]] | Exception | None") -> None:
            good = [item for item in ready if not isinstance(item, Exception)]
            together = _tried(Future.result, reading) if isinstance(reading, Future) else reading
            if isinstance(together, list):
                done: list[_Output | Exception] = [*together]
            elif isinstance(together, Exception) and len(good) == 1:
                done = [together]
            else:
                done = [_tried(alone, item) for item in good]
            answers = iter(done)
            results.extend(item if isinstance(item, Exception) else next(answers) for item in ready)

        following = ahead.submit(prepared, 0)
        before: tuple[list[_Ready | Exception], Any] | None = None
        for start in range(0, len(items), batch_size):
            ready, inputs = following.result()
            following = ahead.submit(prepared, start + batch_size)
            good = [item for item in ready if not isinstance(item, Exception)]
            made = inputs if inputs is None or isinstance(inputs, Exception) else _tried(steps.run, inputs)
            failed = isinstance(made, Exception) or not good
            reading = made if failed else behind.submit(_read, steps, good, made)
            del inputs, made  # what the next batch needs the memory for
            if before is not None:
                settle(*before)
            before = ready, reading
        if before is not None:
            settle(*before)
    if len(results) > 1 and all(isinstance(result, Exception) for result in results):
        raise next(result for result in results if isinstance(result, Exception))
    return results


def _read(steps: Steps[_Ready, _Output], batch: list[_Ready], made: Any) -> list[_Output]:
    return _as_many(steps.read(batch, made), batch)


def _tried(action: Callable[[_Input], _Output], item: _Input) -> _Output | Exception:
    try:
        return action(item)
    except UserError:  # about the installation, not about a photo
        raise
    except Exception as error:
        # Its frames hold a forward pass's tensors: on a GPU the next batch would fail for want of that memory.
        clear_frames(error.__traceback__)
        return error


def _as_many(made: Sequence[_Output], items: Sequence[Any]) -> list[_Output]:
    if len(made) != len(items):
        raise ValueError(f"{len(made)} results for {len(items)} photos")
    return list(made)
