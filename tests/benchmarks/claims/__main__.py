"""`python -m tests.benchmarks.claims`: train what is missing, draw what is missing, write the report.

It can be stopped at any time; the same command goes on. A longer training continues the shorter one.
"""

import argparse
import fcntl
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import infra.torchvision_ops  # noqa: F401

import torch

from tests.benchmarks.claims.drawing import Gallery
from tests.benchmarks.claims.plan import LENGTHS, SEEDS, Drawn, todo
from tests.benchmarks.claims.training import kept_folder, train
from tests.benchmarks.claims.world import World

ROOT = Path(__file__).parents[3]


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.claims", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="where results on the way lie")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread, each on its own arms")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="training seeds, most urgent first")
    parser.add_argument("--length", type=int, choices=LENGTHS, default=LENGTHS[-1], help="steps of the table")
    parser.add_argument("--no-search", action="store_true", help="leave out the search for the best setting")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing new after so long")
    parser.add_argument("--report", action="store_true", help="only write the report from what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    World.at(options.work)  # makes the shards, once, before the workers look for them
    if not options.report:
        items = todo(tuple(options.seeds), options.length, not options.no_search)
        deadline = time.monotonic() + options.minutes * 60
        _in_processes(options.work, items, options.workers, deadline)
    from tests.benchmarks.claims.report import write_report

    for path in write_report(Gallery(World.at(options.work), options.work), tuple(options.seeds), ROOT / "evaluation"):
        print(path)


def _in_processes(work: Path, items: Sequence[Drawn], workers: int, deadline: float) -> None:
    """Every worker walks the list and takes what nobody holds."""
    if workers <= 1:
        work_through(work, items, deadline)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (work, items, deadline, os.getpid())
    processes = [context.Process(target=work_through, args=arguments) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise SystemExit(f"A worker ended with code {failed[0]}: run the same command again; nothing done is lost.")


def work_through(work: Path, items: Sequence[Drawn], deadline: float, parent: int | None = None) -> None:
    """Train and measure item by item, in order; what another process is at is left to it.

    With `parent`: end when that process is gone, however it ended.
    """
    torch.set_num_threads(1)
    world = World.at(work)
    gallery = Gallery(world, work)
    for number, item in enumerate(items, start=1):
        if time.monotonic() > deadline or _orphaned(parent):
            return
        if gallery.path(item).exists():
            continue
        with _held(work / "locks" / item.arm.name) as held:
            if not held:
                continue
            say = f"{time.strftime('%H:%M:%S')} {number}/{len(items)} {item.name}"
            if item.arm.kind != "prior" and not kept_folder(work, item.arm, item.seed, item.step).is_dir():
                _train(world, work, item, say, parent)
            gallery.measure(item)
            print(f"{say}: measured", flush=True)


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


if __name__ == "__main__":
    main()
