"""Batches ready before they are asked for: by a thread, or by processes of torch's loader.

Either way step k's batch is a pure function of k: nothing of what is under way has to be kept for a restart.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from flows.training_samples import StepBatch, StepBatches
from infra.errors import UserError
from infra.settings import TrainSettings


def batches(source: StepBatches, steps: Sequence[int], settings: TrainSettings, pin: bool) -> Iterator[StepBatch]:
    """The batches of some steps in their order; pin: in memory from which a GPU fetches by itself.

    UserError as by the source. Close it, or take all.
    """
    if not settings.loader_workers:
        made = _by_a_thread(source, steps, settings.loader_ahead)
        yield from (one.pin_memory() for one in made) if pin else made
        return
    loader = DataLoader(
        _Told(source),
        sampler=steps,
        batch_size=None,  # the source makes whole ones
        num_workers=settings.loader_workers,
        prefetch_factor=settings.loader_ahead,
        multiprocessing_context="spawn",  # a fork would copy Ray's threads in the middle of what they do
        pin_memory=pin,
    )
    for one in loader:
        if isinstance(one, _Refused):
            raise one.error
        yield one


def _by_a_thread(source: StepBatches, steps: Sequence[int], ahead: int) -> Iterator[StepBatch]:
    with ThreadPoolExecutor(1, "batches") as thread:
        coming: deque[Future[StepBatch]] = deque()
        for step in steps:
            coming.append(thread.submit(source.__getitem__, step))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


@dataclass(frozen=True)
class _Refused:
    error: UserError


@dataclass(frozen=True)
class _Told(Dataset[StepBatch | _Refused]):
    """What the user must mend as a value: torch's loader wraps errors in tracebacks of its own."""

    source: StepBatches

    def __getitem__(self, step: int) -> StepBatch | _Refused:
        try:
            return self.source[step]
        except UserError as error:
            return _Refused(error)
