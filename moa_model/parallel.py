"""One training on many workers: what each of them holds, and how their gradients become one.

``Replicas``: every worker holds everything; DDP sums the gradients once a step. ``Shards``: each holds a part
(``sharding``). The steps are the same, and so is what a checkpoint holds.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from moa_model.checkpoint import Snapshot
from moa_model.sharding import Cut, shard
from moa_model.training import Batch, MoATrainingModule


class Piece(NamedTuple):
    """Rows of a worker's share that go through the module at once."""

    batch: Batch
    counted: int
    """How many samples it counts for: 0 where it only keeps the others company."""
    last: bool
    """Of this step."""


class Replicas:
    """Everything on every worker."""

    def __init__(self, module: MoATrainingModule, device: torch.device, rank: int = 0, workers: int = 1) -> None:
        """Moves the module. With one worker no process group is needed."""
        self.module: nn.Module = module.to(device)
        self.divides_by = workers
        """What the workers' sum of gradients is divided by: DDP takes a mean."""
        self._device, self._rank = device, rank

    def begin(self, step: int) -> None:
        """The state after ``step`` steps is in place. RuntimeError where the workers do not agree on the step."""
        if self.divides_by > 1:
            _agree(step, self._device)
            devices = [self._device] if self._device.type == "cuda" else None
            self.module = DistributedDataParallel(self.module, device_ids=devices, forward_sync_buffers=False)

    def pieces(self, batch: Batch, of: int, size: int) -> Iterator[Piece]:
        """A worker's share of a batch of ``of`` samples, in pieces of ``size`` (0: whole)."""
        return _pieces(batch, len(batch), size)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Around a piece's forward and backward pass: gradients travel once a step, with the last one."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()

    def clip(self, parameters: list[nn.Parameter], most: float) -> Tensor:
        """Scale the gradients down to a norm of ``most``; their norm before that, over all workers."""
        return nn.utils.clip_grad_norm_(parameters, most)

    def snapshot(self, take: Callable[[], Snapshot]) -> Future[Snapshot] | None:
        """What ``take`` copies, with whole tensors; None on the workers that do not write. All workers call it."""
        if self._rank:
            return None
        taken: Future[Snapshot] = Future()
        taken.set_result(take())
        return taken

    def close(self) -> None:
        """Wait until worker 0 has what it is to write."""


class Shards:
    """A part on each of several workers."""

    divides_by: ClassVar[int] = 1

    def __init__(
        self,
        module: MoATrainingModule,
        device: torch.device,
        rank: int,
        workers: int,
        cut: Cut = "fsdp",
        half: torch.dtype | None = None,
    ) -> None:
        """Cuts the module, which should still be on the CPU. ``cut``, ``half``: as of ``sharding.shard``."""
        shard(module, device, cut, half)
        self.module: nn.Module = module
        self._device, self._rank, self._workers = device, rank, workers
        # The parts travel to worker 0 on a thread, through main memory: the steps' own group must not be disturbed.
        self._group = distributed.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, "gather")
        self._sending: Future[Snapshot] | None = None

    def begin(self, step: int) -> None:
        """As of ``Replicas``."""
        _agree(step, self._device)

    def pieces(self, batch: Batch, of: int, size: int) -> Iterator[Piece]:
        """As of ``Replicas``, and as many of them on every worker, since all gather the weights together."""
        return _pieces(batch, -(-of // self._workers), size)

    def exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Each piece's gradients travel: to add them up at home would take a whole gradient's memory."""
        return nullcontext()

    def clip(self, parameters: list[nn.Parameter], most: float) -> Tensor:
        """As of ``Replicas``."""
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        assert isinstance(norm, DTensor)
        whole = norm.full_tensor()
        nn.utils.clip_grads_with_norm_(parameters, most, whole)
        return whole

    def snapshot(self, take: Callable[[], Snapshot]) -> Future[Snapshot] | None:
        """As of ``Replicas``. The steps wait for the copy of this worker's part; it is sent beside them."""
        self._wait()
        gathering = self._thread.submit(take().gathered, self._group)
        if self._rank == 0:
            return gathering
        self._sending = gathering
        return None

    def close(self) -> None:
        """As of ``Replicas``."""
        self._wait()
        self._thread.shutdown()

    def _wait(self) -> None:
        if self._sending is not None:
            self._sending.result()
            self._sending = None


def _pieces(batch: Batch, most: int, size: int) -> Iterator[Piece]:
    """``most``: the largest share of any worker, one more than the smallest at most."""
    rows, size = len(batch), size or most
    for start in range(0, most, size):
        last = start + size >= most
        if start < rows:
            stop = min(start + size, rows)
            yield Piece(batch.rows(start, stop), stop - start, last)
        else:
            yield Piece(batch.rows(rows - 1, rows), 0, last)


def _agree(step: int, device: torch.device) -> None:
    """A store that is written to at this moment may show one worker more than another."""
    span = torch.tensor([step, -step], device=device)
    distributed.all_reduce(span, distributed.ReduceOp.MAX)
    latest, earliest = int(span[0]), -int(span[1])
    if latest != earliest:
        raise RuntimeError(f"the workers took up different checkpoints, of the steps {earliest} to {latest}")
