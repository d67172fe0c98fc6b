"""One process's share of the benchmark: it walks the list and does what nobody else is at.

Apart from `__main__`, which a spawned process cannot import.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch

from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.plan import Drawn
from tests.benchmarks.claims.training import kept_folder, train
from tests.benchmarks.claims.world import World

_AGAIN = 2.0  # seconds until what another process held is looked at again


def work_through(work: Path, items: Sequence[Drawn], deadline: float, parent: int | None = None) -> None:
    """Train and measure item by item, in order; what another process is at is left to it, and looked at again.

    With `parent`: end when that process is gone, however it ended.
    """
    torch.set_num_threads(1)
    world = World.at(work)
    gallery = Gallery(world, work)
    numbered = list(enumerate(items, start=1))
    while numbered := [(number, item) for number, item in numbered if not gallery.path(item).exists()]:
        busy = False
        for number, item in numbered:
            if time.monotonic() > deadline or _orphaned(parent):
                return
            if gallery.path(item).exists():
                continue
            with _held(work / "locks" / item.arm.name) as held:
                if not held:
                    busy = True
                    continue
                say = f"{time.strftime('%H:%M:%S')} {number}/{len(items)} {item.name}"
                if item.arm.kind != "prior" and not kept_folder(work, item.arm, item.seed, item.step).is_dir():
                    _train(world, work, item, say, parent)
                gallery.measure(item)
                print(f"{say}: measured", flush=True)
        if busy:
            time.sleep(_AGAIN)


def _train(world: World, work: Path, item: Drawn, say: str, parent: int | None) -> None:
    def tell(step: int, loss: float) -> None:
        if _orphaned(parent):
            raise SystemExit(1)
        if step % 50 == 0:
            print(f"{say}: step {step} of {item.step}, masked loss {loss:.3f}", flush=True)

    train(world, work, item.arm, item.seed, item.step, tell)


def _orphaned(parent: int | None) -> bool:
    return parent is not None and os.getppid() != parent


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """A lock on an arm that ends with its process, however that ends; False where another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        yield held
